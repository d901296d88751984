"""The report: one HTML file with all results of suites and their origin.

`content` gathers it, `page` writes it. The same results give the same bytes.
"""
