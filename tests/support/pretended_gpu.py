"""A GPU that computes on the CPU, and refuses operations on tensors of both devices as CUDA does.

Memory that `.to("cuda")` or a factory with `device="cuda"` made belongs to the GPU, and so do the
results of operations on it. Tensors with a single number of the CPU may take part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
_COPY = torch.ops.aten.copy_.default
_INDEXING = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default}
"""Operations that take indices of the CPU on CUDA too."""
_DEVICE: Any = torch.Tensor.device.__get__  # type: ignore[attr-defined]
_IS_CUDA: Any = torch.Tensor.is_cuda.__get__  # type: ignore[attr-defined]


class PretendedGpu:
    """The memory of the GPU, which is kept so that no address is used twice."""

    def __init__(self) -> None:
        self._storages: dict[int, Any] = {}
        self.operations = 0

    def holds(self, tensor: torch.Tensor) -> bool:
        with torch._C.DisableTorchFunction():
            return tensor.untyped_storage()._cdata in self._storages

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        with torch._C.DisableTorchFunction():
            storage = tensor.untyped_storage()
        self._storages[storage._cdata] = storage
        return tensor


class _Operations(TorchDispatchMode):
    """Operations, those of the backward pass too: their arguments are on one device."""

    def __init__(self, gpu: PretendedGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [
            part for part in tree_flatten((args, kwargs))[0] if isinstance(part, torch.Tensor)
        ]
        on_gpu = [self.gpu.holds(tensor) for tensor in tensors]
        result = func(*args, **(kwargs or {}))
        if not any(on_gpu) or func is _COPY:
            return result  # a copy fills memory that has its device
        self.gpu.operations += 1
        strangers = [
            list(tensor.shape)
            for tensor, is_there in zip(tensors, on_gpu, strict=True)
            if not is_there and tensor.ndim > 0
        ]
        if strangers and func not in _INDEXING:
            raise RuntimeError(f"{func}: expected all tensors on cuda, found cpu {strangers}")
        return tree_map(self._added, result)

    def _added(self, part: Any) -> Any:
        return self.gpu.add(part) if isinstance(part, torch.Tensor) else part


class _Functions(TorchFunctionMode):
    """Calls that name a device: they run on the CPU, and their results belong to the GPU."""

    def __init__(self, gpu: PretendedGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func == _DEVICE:
            return GPU if self.gpu.holds(args[0]) else CPU
        if func == _IS_CUDA:
            return self.gpu.holds(args[0])
        if func in {torch.Tensor.cpu, torch.Tensor.numpy, torch.Tensor.to}:
            return self._moved(func, args, kwargs)
        device = kwargs.get("device")
        if device is None or torch.device(device).type != "cuda":
            return func(*args, **kwargs)
        return self.gpu.add(func(*args, **{**kwargs, "device": CPU}))

    def _moved(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Copy a tensor to another device, as `.to` and `.cpu` do; `.numpy` reads the CPU alone."""
        tensor = args[0]
        was_there = self.gpu.holds(tensor)
        if func is torch.Tensor.numpy:
            if was_there:
                raise TypeError("can't convert cuda:0 device type tensor to numpy")
            return func(*args, **kwargs)
        wanted = _device_of(func, args[1:], kwargs, GPU if was_there else CPU, self.gpu)
        on_cpu = [CPU if _is_device(part) else part for part in args[1:]]
        on_cpu = [torch.empty(0, dtype=p.dtype) if _is_tensor(p) else p for p in on_cpu]
        options = {**kwargs, "device": CPU} if "device" in kwargs else kwargs
        result = func(tensor, *on_cpu, **options)
        if (wanted == GPU) == was_there:
            return self.gpu.add(result) if was_there else result
        result = result.clone() if result is tensor or self.gpu.holds(result) else result
        with torch._C.DisableTorchFunction():
            storage = result.untyped_storage()
        if wanted == GPU:
            return self.gpu.add(result)
        self.gpu._storages.pop(storage._cdata, None)
        return result


def _is_tensor(part: Any) -> bool:
    return isinstance(part, torch.Tensor)


def _is_device(part: Any) -> bool:
    return isinstance(part, str | torch.device)


def _device_of(
    func: Callable[..., Any], arguments: Any, options: Any, own: torch.device, gpu: PretendedGpu
) -> torch.device:
    """Return the device that a call of `.to` or `.cpu` ends in."""
    if func is torch.Tensor.cpu:
        return CPU
    for part in (*arguments, options.get("device"), options.get("other")):
        if _is_tensor(part):
            return GPU if gpu.holds(part) else CPU
        if _is_device(part):
            return GPU if torch.device(part).type == "cuda" else CPU
    return own


@contextmanager
def pretended_gpu(monkeypatch: Any) -> Iterator[PretendedGpu]:
    """Let torch find a GPU; count the operations on it."""
    gpu = PretendedGpu()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with _Functions(gpu), _Operations(gpu):
        yield gpu
