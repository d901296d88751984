"""One file per figure: `build(frame, width)` returns a matplotlib `Figure`. The docstring's first line is its title."""
