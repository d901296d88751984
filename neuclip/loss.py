"""NeuCLIP as a loss for other training code."""

from __future__ import annotations

from typing import Any

from engine.standalone import StandaloneLoss


class NeuCLIPLoss(StandaloneLoss):
    """NeuCLIP in place of `open_clip.ClipLoss`; see `engine.standalone` for the call.

    Args:
        embed_dim: Width of the embeddings.
        global_batch_size: Pairs in a call, over all processes.
        accum_freq: Calls that share an optimiser step, as in open_clip's trainer.
        seed: Decides which embeddings become prototypes.
        **options: Those of `neuclip.method.NeuCLIP.Config`, except `temperature`.

    Raises:
        ValueError: If an option is unknown or wrong, or a size is not positive.

    A call must pass `index` with ``architecture="queue"``, and need not otherwise.

    Source: NeuCLIP, arXiv:2511.08417. Differs: the temperature is moved by the caller, at the caller's rate.
    """

    def __init__(
        self, embed_dim: int, global_batch_size: int, *, accum_freq: int = 1, seed: int = 0, **options: Any
    ) -> None:
        if options.get("architecture") == "average":
            raise ValueError("architecture 'average' is FastCLIP's estimate: use FastCLIPLoss")
        super().__init__(
            "neuclip",
            options,
            embed_dim=embed_dim,
            global_batch_size=global_batch_size,
            accum_freq=accum_freq,
            seed=seed,
        )
        if options.get("architecture") == "queue":
            self.index_is_for = "architecture 'queue' leaves out an anchor's own past"
