"""One file per table: `build(frame)` returns a `Table`, whose column "Setting" is left out where it is empty."""
