"""One run: the loop, its state and steps, checkpoints, the encoders, and what is reported."""
