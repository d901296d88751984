"""NeuCLIP (arXiv:2511.08417): CLIP training with a normalizer-prediction network."""
