"""A second device, made up: for tests of what a GPU without float64 would refuse (Apple's MPS).

Its tensors hold their numbers on the CPU, say that they are on the device ``lazy`` (a name that
torch knows and that nothing here uses), and refuse what such a device refuses: float64, and
tensors that are still on the CPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("lazy")
TAKES_CPU_TENSORS = {
    torch.ops.aten.copy_,
    torch.ops.aten._to_copy,
    torch.ops.aten.index,  # indices may be on the CPU
    torch.ops.aten.index_put_,
    torch.ops.aten._index_put_impl_,
    torch.ops.aten.index_put,
}


class OnDevice(Tensor):
    """A tensor of the made-up device; ``on_cpu`` has its numbers."""

    on_cpu: Tensor

    @staticmethod
    def __new__(cls, on_cpu: Tensor) -> OnDevice:
        return Tensor._make_wrapper_subclass(
            cls,
            on_cpu.size(),
            strides=on_cpu.stride(),
            storage_offset=on_cpu.storage_offset(),
            dtype=on_cpu.dtype,
            device=DEVICE,
        )

    def __init__(self, on_cpu: Tensor):
        self.on_cpu = on_cpu

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.on_cpu.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("can't convert a tensor of this device to numpy. Use Tensor.cpu() first.")

    def __repr__(self, **options: Any) -> str:
        return f"OnDevice({self.on_cpu!r})"


@contextlib.contextmanager
def without_float64() -> Iterator[torch.device]:
    """Here there is a device ``DEVICE``."""
    with _Operations(), _FromNumbers():
        yield DEVICE


class _FromNumbers(TorchFunctionMode):
    """What does not go through operations: numbers that become tensors, and lists as indices."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if func in (torch.tensor, torch.as_tensor) and device is not None:
            return func(*args, **{**kwargs, "device": "cpu"}).to(device)
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            x, index, *value = args
            args = (x, _as_tensors(index), *value)
        return func(*args, **kwargs)


class _Operations(TorchDispatchMode):
    """All other work."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the CPU, and put what it gives where it belongs."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    on_device = any(isinstance(tensor, OnDevice) for tensor in tensors)
    if on_device and func.overloadpacket not in TAKES_CPU_TENSORS:
        strays = [one for one in tensors if one.ndim and not isinstance(one, OnDevice)]
        if strays:
            raise RuntimeError(f"{func}: tensors on two devices, {DEVICE} and cpu.")
    if func.overloadpacket in TAKES_CPU_TENSORS and args:
        on_device = isinstance(args[0], OnDevice)
    device = kwargs.get("device")
    if device is not None:
        on_device = torch.device(device) == DEVICE
        kwargs = {**kwargs, "device": "cpu"}
    inner_args, inner_kwargs = tree_map(_inner, (args, kwargs))
    out = func(*inner_args, **inner_kwargs)
    if not on_device:
        return out
    return return_and_correct_aliasing(func, args, kwargs, tree_map(_placed, out))


def _as_tensors(index: Any) -> Any:
    """An index without lists."""
    if isinstance(index, tuple):
        return tuple(map(_as_tensors, index))
    return torch.tensor(index) if isinstance(index, list) else index


def _inner(x: Any) -> Any:
    return x.on_cpu if isinstance(x, OnDevice) else x


def _placed(x: Any) -> Any:
    """What an operation gave, on the device."""
    if not isinstance(x, Tensor):
        return x
    if x.dtype == torch.float64:
        raise TypeError(f"Cannot convert a tensor to float64: {DEVICE} has no float64.")
    return OnDevice(x)
