"""One file per table: `build(frame)` returns a `Table`."""
