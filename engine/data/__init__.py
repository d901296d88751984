"""From shards to batches: archives, their index, the order of samples, and the loader."""
