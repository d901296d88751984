"""The report: one HTML file with everything a suite's results say, and where they come from.

`content` gathers it, `page` writes it. Same results, same bytes.
"""
