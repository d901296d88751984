"""One file per figure: `build(frame)` returns a matplotlib `Figure`."""
