"""Record the inputs of the decoder layers of a model in place of running them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import ModelError

_SAME = 1e-5
"""Largest relative difference of what a model adds between layers in two runs."""


@dataclass(frozen=True, slots=True)
class LayerArguments:
    """Arguments of one call of a decoder layer, beside the hidden states."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    added: Tensor | None = None
    """Values that the model adds to the result of the layer before, such as features of images;
    None for most models."""


class NotStreamableError(ModelError):
    """The layers of a model cannot be run one after another outside of the model."""


def run_layer(layer: nn.Module, hidden: Tensor, arguments: LayerArguments) -> Tensor:
    """Return the output of a decoder layer, [B, T, hidden]."""
    with torch.inference_mode():
        if arguments.added is not None:
            hidden = hidden + arguments.added
        output = layer(hidden, *arguments.args, **arguments.kwargs)
    result: Tensor = output[0] if isinstance(output, tuple) else output
    return result


@dataclass(slots=True)
class RecordedLayers:
    """Arguments that the layers of a model received in one run."""

    scale: float = 1.0
    """Factor between a recorder's input and its result, to see what depends on it."""
    inputs: list[Tensor] = field(default_factory=list)
    """Hidden states before each layer."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    added: list[Tensor | None] = field(default_factory=list)

    @property
    def hidden(self) -> Tensor:
        """Input of the first layer."""
        return self.inputs[0].clone()

    def arguments(self) -> list[LayerArguments]:
        """Return the arguments of every layer."""
        return [
            LayerArguments(args, kwargs, added)
            for (args, kwargs), added in zip(self.calls, self.added, strict=True)
        ]


class LayerRecording:
    """Runs of a model whose layers are replaced by recorders."""

    def __init__(self, layers: int, run_first: Callable[..., Any]) -> None:
        self.layers, self._run_first = layers, run_first
        self.current = RecordedLayers()
        self._rest: tuple[Any, ...] | None = None
        """Second result of a layer beside the hidden states; None for a layer that returns those
        alone."""
        self._is_known = False

    def run(
        self, module: nn.Module, batch: Mapping[str, Tensor], scale: float = 1.0
    ) -> RecordedLayers:
        """Return the arguments of all layers in one run."""
        self.current = RecordedLayers(scale)
        try:
            with torch.inference_mode():
                module(**batch)
        except _LastLayerReached:
            return self.current
        except (NotImplementedError, RuntimeError) as error:
            if "meta" not in str(error):  # torch has no class of its own for it
                raise
            raise NotStreamableError("it reads weights outside of their modules") from error
        raise NotStreamableError("not every decoder layer is called, or not in turn")

    def record(self, hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record a call of a layer and return what stands for its result."""
        current = self.current
        added = None
        if current.inputs:
            before = current.inputs[-1] * current.scale
            if before.shape != hidden.shape:
                raise NotStreamableError("decoder layers receive tensors of several shapes")
            if not torch.equal(before, hidden):
                added = hidden - before
        current.inputs.append(hidden)
        current.calls.append((args, kwargs))
        current.added.append(added)
        if len(current.inputs) == self.layers:
            raise _LastLayerReached
        if not self._is_known:
            result = self._run_first(hidden, args, kwargs)
            self._rest = tuple(result[1:]) if isinstance(result, tuple) else None
            self._is_known = True
        result = hidden * current.scale if current.scale != 1 else hidden
        return result if self._rest is None else (result, *self._rest)

    def check_independent(
        self, module: nn.Module, batch: Mapping[str, Tensor], first: RecordedLayers
    ) -> None:
        """Check that arguments do not depend on the hidden states, and that layers share nothing.

        Raises:
            NotStreamableError: they do.
        """
        again = self.run(module, batch, scale=1.5)
        calls = zip(first.calls, again.calls, strict=True)
        for number, (call, other) in enumerate(calls):
            same_names = call[1].keys() == other[1].keys()
            if not same_names or not _are_equal(_values(call), _values(other)):
                raise NotStreamableError(
                    f"arguments of decoder layer {number} depend on the layers before, or layers "
                    "share a state"
                )
        for one, two in zip(first.added, again.added, strict=True):
            if one is None and two is None:
                continue
            size = 0.0 if one is None else float(one.abs().max())
            if one is None or two is None or float((one - two).abs().max()) > _SAME * size + _SAME:
                raise NotStreamableError("the model changes hidden states between its layers")


def _values(call: tuple[tuple[Any, ...], dict[str, Any]]) -> tuple[Any, ...]:
    """Return the values of all arguments of a call."""
    return (*call[0], *call[1].values())


def _are_equal(one: Any, two: Any) -> bool:
    """Return True for equal values of types that hold no state."""
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return one.shape == two.shape and torch.equal(one, two)
    if type(one) is not type(two):
        return False
    if isinstance(one, dict):
        return (
            bool(one)
            and one.keys() == two.keys()
            and all(_are_equal(one[key], two[key]) for key in one)
        )
    if isinstance(one, tuple | list):
        return len(one) == len(two) and all(map(_are_equal, one, two))
    return one is None or (isinstance(one, int | float | str | torch.dtype) and one == two)


class _LastLayerReached(Exception):  # noqa: N818  not an error: it ends the forward pass
    """Raised by the recorder of the last layer."""


class LayerRecorder(nn.Module):
    """Stand-in for a layer that records its arguments and returns its input."""

    def __init__(self, layer: nn.Module, recording: LayerRecording) -> None:
        super().__init__()
        object.__setattr__(self, "_layer", layer)
        self._recording = recording

    def __getattr__(self, name: str) -> Any:
        """Return attributes that the model reads from its layers, such as the attention type."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._layer, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Record the arguments; return the hidden states, as the layer returns its result."""
        if args:
            return self._recording.record(args[0], args[1:], kwargs)
        hidden = kwargs.pop("hidden_states")
        return self._recording.record(hidden, (), kwargs)
