"""Suites, data set cards and evaluation cards, and what expands them into runs."""
