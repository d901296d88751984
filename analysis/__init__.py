"""Turns results into tables, figures and reports. Reads what the engine wrote; never trains."""
