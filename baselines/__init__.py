"""The methods that NeuCLIP is compared with, one file each, found by name. Here: two of them as losses to import."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from engine.standalone import StandaloneLoss


class FastCLIPLoss(StandaloneLoss):
    """FastCLIP in place of `open_clip.ClipLoss`; see `engine.standalone` for the call, which must pass `index`.

    Args:
        dataset_size: Number of pairs in the data set: positions are 0 <= index < dataset_size.
        global_batch_size: Pairs in a call, over all processes.
        steps_per_epoch: Optimiser steps per epoch.
        num_epochs: Epochs of the run.
        accum_freq: Calls that share an optimiser step, as in open_clip's trainer.
        **options: Those of `baselines.fastclip.FastCLIP.Config`, except `temperature`; `version` is v0 or v3.

    Raises:
        ValueError: If an option is unknown or wrong, or a size is not positive.

    Source: FastCLIP, arXiv:2407.01445. Differs: the temperature is moved by the caller, at the caller's rate.
    """

    def __init__(
        self,
        dataset_size: int,
        global_batch_size: int,
        steps_per_epoch: int,
        num_epochs: int,
        *,
        accum_freq: int = 1,
        **options: Any,
    ) -> None:
        if options.get("version", "v3") not in ("v0", "v3"):
            raise ValueError(
                f"version = {options['version']!r}: allowed are v0 and v3, whose one temperature your model can own. "
                "v1 is v0 with your model's logit_scale frozen; v2 has a temperature of its own for every sample"
            )
        super().__init__(
            "fastclip",
            options,
            dataset_size=dataset_size,
            global_batch_size=global_batch_size,
            steps_per_epoch=steps_per_epoch,
            num_epochs=num_epochs,
            accum_freq=accum_freq,
            seed=0,
        )
        self.index_is_for = "FastCLIP keeps a normalizer for every pair"

    def _positions(self, index: Tensor | None, num_pairs: int) -> Tensor:
        index, size = super()._positions(index, num_pairs), self.env.dataset_size
        if index.max() >= size:
            raise ValueError(
                f"index: got positions up to {int(index.max())}, allowed are 0 to {size - 1}: "
                "make the loss with the dataset_size of the whole data set"
            )
        return index


class AmorLIPLoss(StandaloneLoss):
    """AmorLIP in place of `open_clip.ClipLoss`; see `engine.standalone` for the call.

    Args:
        embed_dim: Width of the embeddings.
        global_batch_size: Pairs in a call, over all processes.
        steps_per_epoch: Optimiser steps per epoch.
        num_epochs: Epochs of the run.
        accum_freq: Calls that share an optimiser step, as in open_clip's trainer.
        seed: Decides the networks' first weights.
        **options: Those of `baselines.amorlip.AmorLIP.Config`, except `temperature`.

    Raises:
        ValueError: If an option is unknown or wrong, or a size is not positive.

    Source: AmorLIP, arXiv:2505.18983. Differs: the temperature is moved by the caller, at the caller's rate.
    """

    def __init__(
        self,
        embed_dim: int,
        global_batch_size: int,
        steps_per_epoch: int,
        num_epochs: int,
        *,
        accum_freq: int = 1,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(
            "amorlip",
            options,
            embed_dim=embed_dim,
            global_batch_size=global_batch_size,
            steps_per_epoch=steps_per_epoch,
            num_epochs=num_epochs,
            accum_freq=accum_freq,
            seed=seed,
        )
