"""Reducers for torch: a large CPU tensor goes as its memory, which torch itself would copy into the pickle twice.

Torch has no read-only tensors, and who writes to one over read-only memory ends by a signal. So a tensor that is loaded from
shared memory copies it, once, unless that memory may be written to (``writable=True``).
"""

from __future__ import annotations

from typing import Any

from redist.protocol.reducers import Reducer
from redist.protocol.sizes import OUT_OF_BAND

__all__ = ["reducers"]


def reducers() -> dict[type, Reducer]:
    """Return the reducers by class."""
    import torch

    return {torch.Tensor: _reduce}


def _reduce(tensor: Any, _sink: Any) -> Any:
    import torch

    if (
        tensor.layout is not torch.strided
        or tensor.device.type != "cpu"
        or tensor.nbytes < OUT_OF_BAND
        or tensor.is_quantized
        or tensor.is_conj()
        or tensor.is_neg()
        or vars(tensor)
        or tensor._backward_hooks
    ):
        return NotImplemented
    # Numpy lacks some types (bfloat16), so it gets numbers of the same size.
    size = tensor.element_size()
    number = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}.get(size)
    if number is None:
        return NotImplemented
    once = tensor.detach()[tuple(slice(0, 1) if step == 0 else slice(None) for step in tensor.stride())]
    # Axes by falling strides: what is dense in any order of its axes (channels last) keeps that order.
    axes = sorted(range(once.ndim), key=lambda axis: -once.stride(axis))
    turned = once.permute(axes)
    if not turned.is_contiguous():
        axes, turned = list(range(once.ndim)), once
    array = turned.view(number).numpy()
    return _tensor, (array, tensor.dtype, axes, tuple(tensor.shape), tensor.requires_grad)


def _tensor(array: Any, dtype: Any, axes: list[int], shape: tuple[int, ...], requires_grad: bool) -> Any:
    import torch

    tensor: Any = torch.from_numpy(array if array.flags.writeable else array.copy()).view(dtype)
    tensor = tensor.permute([axes.index(axis) for axis in range(len(axes))]).expand(shape)
    return tensor.requires_grad_() if requires_grad else tensor
