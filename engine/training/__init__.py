"""One run: its loop, steps and state, the encoders, checkpoints, measurements, reports and its outcome."""
