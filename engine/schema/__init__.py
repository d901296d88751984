"""The content of files as frozen models: runs, records, evaluations and suites."""
