"""What files say: runs, records, evaluations and suites as frozen models. Nothing here computes."""
