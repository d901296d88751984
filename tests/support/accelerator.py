"""Torch's meta device as an accelerator: what waits for it is counted, and mixing it with the CPU raises."""

import contextlib
import importlib
import traceback
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from engine.versions import ROOT

DEVICE = torch.device("meta")

aten = torch.ops.aten
SHAPED_BY_VALUES = {
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_consecutive.default,
    aten.unique_dim.default,
    aten.repeat_interleave.Tensor,
}
"""The shape of what they return depends on values, for which the CPU has to wait."""

VALUES = {torch.float64: 0.0, torch.int64: 0, torch.bool: False}
"""What stands for values, as none is known: 0 in what a step says when nothing was asked for and everything is finite;
1 elsewhere, as in Adam's count of steps."""


class Waits(TorchDispatchMode):
    """Counts by line what a GPU would make the CPU wait for: values, and copies that are not asynchronous."""

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()
        self.looks: Counter[str] = Counter()
        """Asynchronous copies to the CPU: somebody waits for them, but later."""

    def forget(self) -> None:
        """Count anew."""
        self.places.clear()
        self.looks.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default:
            self._note(args[0])
            return VALUES.get(args[0].dtype, 1.0)
        if func is aten._fused_adamw_.tensor_lr:
            # Of which torch knows no shapes; a GPU reads the rate as a number of this precision.
            assert (kwargs["lr"].device, kwargs["lr"].dtype) == (DEVICE, torch.float32)
            return aten._fused_adamw_.default(*args, **kwargs | {"lr": 0.0})
        if func in SHAPED_BY_VALUES:
            self._note(args[0])
        elif func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
            if any(index is not None and index.dtype == torch.bool for index in args[1]):
                self._note(args[0])
        elif func is aten._to_copy.default:
            self._note_copy(kwargs.get("device", args[0].device), args[0].device, kwargs.get("non_blocking"))
        elif func is aten.copy_.default:
            self._note_copy(args[0].device, args[1].device, kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
        return func(*args, **kwargs)

    def _note(self, of: Tensor) -> None:
        self.places[_place()] += of.device == DEVICE

    def _note_copy(self, to: torch.device, source: torch.device, is_asynchronous: bool | None) -> None:
        if (to == DEVICE) != (source == DEVICE):
            if not is_asynchronous:
                self.places[_place()] += 1
            elif to != DEVICE:
                self.looks[_place()] += 1


class _AsOnAGpu(TorchFunctionMode):
    """Brings numbers to the device as a GPU does: made on the CPU, then copied."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and kwargs.get("device") == DEVICE:
            return func(*args, **kwargs | {"device": "cpu"}).to(DEVICE)
        return func(*args, **kwargs)


@contextlib.contextmanager
def pretended() -> Iterator[Waits]:
    """Compute shapes and devices alone within the block, and no values; yields the count of waits."""
    with contextlib.ExitStack() as stack:
        # Torch's own `to` gives up on parameters without values.
        stack.enter_context(mock.patch.object(nn.Module, "to", _to))
        # There is no autocast for this device.
        stack.enter_context(mock.patch.object(torch, "autocast", return_value=contextlib.nullcontext()))
        # A list is one copy, not as many as it has entries.
        as_list = FakeTensor.tolist
        stack.enter_context(mock.patch.object(FakeTensor, "tolist", lambda tensor: as_list(tensor.cpu())))
        for module in map(importlib.import_module, ("torch.utils._foreach_utils", "torch.optim.optimizer")):
            for kind in ("foreach", "fused"):
                name = f"_get_{kind}_kernels_supported_devices"
                stack.enter_context(mock.patch.object(module, name, return_value=["cpu", DEVICE.type]))
        mode = stack.enter_context(FakeTensorMode())
        mode.__deepcopy__ = lambda memo: mode  # type: ignore[attr-defined]
        stack.enter_context(_AsOnAGpu())
        yield stack.enter_context(Waits())


def _to(module: nn.Module, device: torch.device | torch.dtype, memory_format: Any = None) -> nn.Module:
    if isinstance(device, torch.dtype):
        return module
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.fake_device, tensor.constant = device, None
    return module


def _place() -> str:
    """Return the innermost line of this repository that is being run, outside of this file."""
    for frame, line in traceback.walk_stack(None):
        path = frame.f_code.co_filename
        if path.startswith(str(ROOT)) and path != __file__ and "site-packages" not in path:
            return f"{path.removeprefix(f'{ROOT}/')}:{line}"
    return "elsewhere"
