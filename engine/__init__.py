"""Training, evaluation and launching, shared by every method. Knows no method by name."""
