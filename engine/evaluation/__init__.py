"""One model on many evaluation sets: cards, data, metrics, and the command's work."""
