"""NeuCLIP (arXiv:2511.08417): CLIP training with a normalizer-prediction network."""

from neuclip.loss import NeuCLIPLoss

__all__ = ["NeuCLIPLoss"]
