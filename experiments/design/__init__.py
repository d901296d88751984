"""What is to be run: cards of data, suites, their names, and how they expand to runs."""
