"""NeuCLIP as a loss for other training code."""

from __future__ import annotations

from typing import Any, Literal

from engine.standalone import StandaloneLoss


class NeuCLIPLoss(StandaloneLoss):
    """NeuCLIP in place of `open_clip.ClipLoss`; see `engine.standalone` for the call.

    Args:
        embed_dim: Width of the embeddings.
        global_batch_size: Pairs in a call, over all processes.
        accum_freq: Calls that share an optimiser step, as in open_clip's trainer.
        seed: Decides which embeddings become prototypes.
        control: A sibling of `neuclip/controls/` in place of NeuCLIP: the batch itself or a queue gives normalizers.
            A call must pass `index` to the queue, and need not otherwise.
        **options: Those of the method's `Config`, except `temperature`.

    Raises:
        ValueError: If an option is unknown or wrong, or a size is not positive.

    Source: NeuCLIP, arXiv:2511.08417. Differs: the temperature is moved by the caller, at the caller's rate.
    """

    def __init__(
        self,
        embed_dim: int,
        global_batch_size: int,
        *,
        accum_freq: int = 1,
        seed: int = 0,
        control: Literal["neuclip_batch", "neuclip_queue"] | None = None,
        **options: Any,
    ) -> None:
        if control not in (None, "neuclip_batch", "neuclip_queue"):
            raise ValueError(
                f"control = {control!r}: allowed are neuclip_batch and neuclip_queue; a moving average is "
                "FastCLIPLoss, and exact normalizers take the suite's own trainer"
            )
        super().__init__(
            control or "neuclip",
            options,
            embed_dim=embed_dim,
            global_batch_size=global_batch_size,
            accum_freq=accum_freq,
            seed=seed,
        )
        if control == "neuclip_queue":
            self.index_is_for = "neuclip_queue leaves out an anchor's own past"
