"""Complex numbers as pairs of real tensors while a class is traced: ONNX has no complex operators.

Classes such as Llama 4 rotate queries and keys by a product of complex numbers. Complex tensors
come into being by ``torch.polar``, ``torch.complex`` and ``torch.view_as_complex``, which return
pairs here, and end with ``torch.view_as_real``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

_SHAPED = {
    *("__getitem__", "contiguous", "expand", "flatten", "index_select", "narrow", "permute"),
    *("repeat", "reshape", "squeeze", "to", "transpose", "unflatten", "unsqueeze", "view"),
}
"""Methods of tensors that treat both parts alike."""


@dataclass(frozen=True, slots=True)
class ComplexPair:
    """A complex tensor as its real and its imaginary part, which have the same shape."""

    real: Tensor
    imag: Tensor

    @property
    def shape(self) -> torch.Size:
        """Return the shape of the complex tensor."""
        return self.real.shape

    @property
    def device(self) -> torch.device:
        """Return the device of both parts."""
        return self.real.device

    def __getattr__(self, name: str) -> Callable[..., ComplexPair]:
        """Return a method of tensors, applied to both parts.

        Raises:
            AttributeError: the method is not one of those that move values only.
        """
        if name not in _SHAPED:
            raise AttributeError(f"complex tensors have no {name} in ONNX graphs")
        return lambda *args, **kwargs: ComplexPair(
            getattr(self.real, name)(*args, **kwargs), getattr(self.imag, name)(*args, **kwargs)
        )

    def __getitem__(self, index: Any) -> ComplexPair:
        """Return the values at an index."""
        return ComplexPair(self.real[index], self.imag[index])

    def __mul__(self, other: ComplexPair | Tensor | float) -> ComplexPair:
        """Return the product with a complex or a real tensor, or a real number."""
        if not isinstance(other, ComplexPair):
            return ComplexPair(self.real * other, self.imag * other)
        return ComplexPair(
            self.real * other.real - self.imag * other.imag,
            self.real * other.imag + self.imag * other.real,
        )

    __rmul__ = __mul__

    def __add__(self, other: ComplexPair) -> ComplexPair:
        """Return the sum of two complex tensors."""
        return ComplexPair(self.real + other.real, self.imag + other.imag)

    def __neg__(self) -> ComplexPair:
        """Return the negative values."""
        return ComplexPair(-self.real, -self.imag)

    def conj(self) -> ComplexPair:
        """Return the conjugate values."""
        return ComplexPair(self.real, -self.imag)

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run a function of torch on pairs.

        Raises:
            AttributeError: ``function`` has no form for pairs.
        """
        del types
        name = function.__name__
        if name == "view_as_real":
            (value,) = args
            return torch.stack([value.real, value.imag], dim=-1)
        first, *rest = args
        if name in {"mul", "multiply"} and not isinstance(first, ComplexPair):
            first, rest = rest[0], [first]
        operator = {"mul": "__mul__", "multiply": "__mul__", "add": "__add__", "neg": "__neg__"}
        return getattr(first, operator.get(name, name))(*rest, **(kwargs or {}))


def _polar(abs: Tensor, angle: Tensor) -> ComplexPair:  # noqa: A002  the name in torch
    return ComplexPair(abs * angle.cos(), abs * angle.sin())


def _view_as_complex(input: Tensor) -> ComplexPair:  # noqa: A002  the name in torch
    return ComplexPair(*input.unbind(-1))


@contextmanager
def complex_as_pairs() -> Iterator[None]:
    """Let functions that make complex tensors return pairs."""
    with (
        patch.object(torch, "polar", _polar),
        patch.object(torch, "complex", ComplexPair),
        patch.object(torch, "view_as_complex", _view_as_complex),
    ):
        yield
