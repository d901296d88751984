"""Faults in a whole workflow, drawn from seeds: what was struck goes on to the results of the one that was not."""
