"""What is drawn of a frame, one file per study: `table(frame)` returns a `Table`, `figure(frame, width)` a `Figure`.

Either may be missing, and either returns None where the frame has nothing for it. The docstring's first line is the
figure's title. `KINDS` are the kinds of rows that both get; by default `rendering.DEFAULT_KINDS`.
"""
