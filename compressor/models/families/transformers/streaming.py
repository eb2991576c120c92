"""Checkpoints processed part by part: only the weights of the current part are in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from compressor.errors import ModelError
from compressor.models.families.transformers.checkpoint import Checkpoint, move_to_meta
from compressor.models.families.transformers.conv1d import replace_conv1d, transpose
from compressor.models.families.transformers.experts.split import split_experts, split_tensors
from compressor.models.families.transformers.generic.decoder_parts import (
    decoder_parts,
    leaf_parts,
)
from compressor.models.families.transformers.modules import build_on_meta

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


class StreamedCheckpoint(Checkpoint):
    """A checkpoint of a language model, run up to its first decoder layer part by part.

    Fused experts are split into one linear layer per expert and projection.
    """

    def __init__(self, folder: Path, tree: Mapping[str, Any]) -> None:
        """Read the headers and build the module without weights; see ``Checkpoint``.

        Raises:
            NotStreamableError: the class has no list of decoder layers.
        """
        super().__init__(folder, tree)
        self.transposed = replace_conv1d(self.module)
        """Weights that the class has as [inputs, outputs], and the files too."""
        parts = decoder_parts(self.module)
        if parts is None:
            raise NotStreamableError(f"{type(self.module).__name__} has no list of decoder layers")
        self.parts = parts
        self.layers_name = parts.layers
        self.experts = split_experts(self.module)
        if self.experts.split or self.transposed:  # the library looks up the class's shapes
            self._conversions.module = build_on_meta(tree)
        self._behind: dict[str, nn.Module] = {}
        """Decoder layers behind their recorders."""
        self._stand_ins: set[str] = set()
        """Parts whose ``forward`` is replaced."""
        self.tower_calls: list[Counter[str]] = []
        """For each batch of ``first_layer_inputs`` the number of calls of the parts of the towers,
        in the order of their first calls."""
        self.replaced: dict[str, Path] = {}
        """Parts to safetensors files whose tensors they have in place of the checkpoint's."""

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers."""
        return cast("nn.ModuleList", self.module.get_submodule(self.layers_name))

    def is_stored_elsewhere(self, name: str) -> bool:
        """Return True for a tied tensor that the files hold under the other name."""
        ties = dict(self.module.all_tied_weights_keys)
        return name not in self.names and name in {*ties, *ties.values()}

    def load(self, name: str) -> nn.Module:
        """Return a submodule with its weights in float32."""
        module = self._submodule(name)
        if name in self.replaced:
            weights = safetensors.torch.load_file(self.replaced[name])
            module.load_state_dict(weights, assign=True)
            return module.requires_grad_(False)
        start = len(name) + 1
        weights = {
            key[start:]: value.float() for key, value in self.tensors(self.names_below(name))
        }
        weights = transpose(weights, self.transposed, f"{name}.")
        weights |= self.computed_below(name)
        module.load_state_dict(split_tensors(module, weights), assign=True)
        return module.requires_grad_(False)

    def unload(self, name: str) -> None:
        """Move the parameters of a submodule to ``meta``; buffers, which no file holds, stay."""
        move_to_meta(self._submodule(name))

    def _submodule(self, name: str) -> nn.Module:
        """Return a submodule, also while recorders stand for the layers."""
        return self._behind.get(name) or self.module.get_submodule(name)

    def first_layer_inputs(
        self, batches: Callable[[], Iterator[Mapping[str, Tensor]]]
    ) -> Iterator[tuple[Tensor, list[LayerArguments]]]:
        """Yield, for each batch, the input of the first layer and the arguments of every layer.

        Only the rows of the embeddings that a batch uses are read. Images pass the towers first,
        with one of their blocks in memory at a time.

        Args:
            batches: returns the batches of model inputs.

        Yields:
            Hidden states [B, T, hidden], and the other arguments of each layer.

        Raises:
            NotStreamableError: what a layer receives depends on the layers before in another way
                than through their result.
        """
        self.tower_calls = []
        with (
            self._weights_outside_layers(),
            self._recorders() as recording,
            self._counted_calls() as counts,
        ):
            for number, batch in enumerate(batches()):
                counts.clear()
                first = recording.run(self.module, batch)
                self.tower_calls.append(Counter(counts))
                if number == 0:
                    recording.check_independent(self.module, batch, first)
                yield first.hidden, first.arguments()

    @contextmanager
    def _weights_outside_layers(self) -> Iterator[None]:
        """Let every module outside of the decoder layers have its weights while it runs."""
        tables: list[tuple[str, Any, Any]] = []
        hooks = [
            hook
            for part in [*self.parts.others, *self.parts.towers]
            for name in leaf_parts(self.module, part)
            for hook in self._load_during_forward(name)
        ]
        for name in self.parts.tables:
            table: Any = self.module.get_submodule(name)
            tables.append((name, table, table.padding_idx))
            # Some classes move the tokens to the device of the table before they look them up.
            empty = torch.zeros(1).expand(table.weight.shape)
            table.weight = nn.Parameter(empty, requires_grad=False)
            table.forward = self._embedding_of_rows(name)
            table.padding_idx = None  # refers to the whole table; matters to gradients alone
        self._load_loose()
        try:
            with _on_cpu():
                yield
        finally:
            self._unload_loose()
            for name, table, padding_id in tables:
                del table.forward
                table.padding_idx = padding_id
                self.unload(name)
            for hook in hooks:
                hook.remove()

    def _loose(self) -> Iterator[tuple[str, nn.Module, str]]:
        """Yield the parameters of the modules that hold parts, such as a vector between images.

        Yields:
            Name in the model, module and name in the module.
        """
        parts = [*self.parts.others, *self.parts.tables, *self.tower_parts(), self.layers_name]
        holders = {name[:end] for name in parts for end in _dots(name)}
        for holder in sorted(holders - {*parts}):
            module = self.module.get_submodule(holder)
            for name, _ in module.named_parameters(recurse=False):
                yield f"{holder}.{name}" if holder else name, module, name

    def _load_loose(self) -> None:
        for full, module, name in self._loose():
            [(_, value)] = self.tensors([self.source(full)])
            setattr(module, name, nn.Parameter(value.float(), requires_grad=False))

    def _unload_loose(self) -> None:
        for _, module, name in self._loose():
            empty = torch.empty_like(module.get_parameter(name), device="meta")
            setattr(module, name, nn.Parameter(empty, requires_grad=False))

    @contextmanager
    def _recorders(self, count: int | None = None) -> Iterator[_Recording]:
        """Replace the layers by recorders; a run ends after ``count`` of them, by default all."""
        layers, stack = list(self.layers), self.layers
        recording = _Recording(count or len(layers), self._run_first_layer)
        self._behind = {f"{self.layers_name}.{n}": layer for n, layer in enumerate(layers)}
        for number, layer in enumerate(layers):
            stack[number] = _Recorder(layer, recording)
        try:
            yield recording
        finally:
            for number, layer in enumerate(layers):
                stack[number] = layer
            self._behind = {}

    @contextmanager
    def stand_ins(
        self, forwards: Mapping[str, Callable[..., Any]]
    ) -> Iterator[Callable[[Mapping[str, Tensor]], object]]:
        """Let functions stand for the ``forward`` of parts of the towers, and run nothing behind.

        The weights of these parts are not loaded.

        Args:
            forwards: part to the function.

        Yields:
            What runs a batch through the towers, as far as the first decoder layer.
        """
        self._stand_ins = {*forwards}
        modules = {name: cast("Any", self.module.get_submodule(name)) for name in forwards}
        try:
            with self._weights_outside_layers(), self._recorders(1) as recording:
                for name, module in modules.items():
                    module.forward = forwards[name]
                yield partial(recording.run, self.module)
        finally:
            for module in modules.values():
                vars(module).pop("forward", None)
            self._stand_ins = set()

    @contextmanager
    def _counted_calls(self) -> Iterator[Counter[str]]:
        """Count the calls of the parts of the towers."""
        counts: Counter[str] = Counter()
        hooks = [
            self.module.get_submodule(name).register_forward_pre_hook(
                lambda *_, name=name: counts.update([name])
            )
            for name in self.tower_parts()
        ]
        try:
            yield counts
        finally:
            for hook in hooks:
                hook.remove()

    def _run_first_layer(self, hidden: Tensor, args: tuple[Any, ...], kwargs: Any) -> Any:
        """Return the result of the first layer: a tensor, or a tuple that begins with one."""
        name = f"{self.layers_name}.0"
        try:
            return self.load(name)(hidden, *args, **kwargs)
        finally:
            self.unload(name)

    def _embedding_of_rows(self, name: str) -> Callable[[Tensor], Tensor]:
        """Return a ``forward`` for the embedding that reads only the rows it looks up."""
        embedding = self.module.get_submodule(name)
        forward = embedding.forward
        stored_name = self.source(f"{name}.weight")

        def embed(token_ids: Tensor) -> Tensor:
            rows_R, indices = torch.unique(token_ids, return_inverse=True)
            embedding.weight = nn.Parameter(
                self.rows(stored_name, rows_R).float(), requires_grad=False
            )
            embedded: Tensor = forward(indices)
            return embedded

        return embed

    def tower_parts(self) -> list[str]:
        """Return the modules with weights that the towers call in turn; none without a tower."""
        return [
            name
            for tower in self.parts.towers
            for name in leaf_parts(self.module, tower)
            if self.names_below(name)
        ]

    def _load_during_forward(self, name: str) -> list[RemovableHandle]:
        """Hook a module so that its weights are in memory only while it runs."""

        def load(*_: Any) -> None:
            if name not in self._stand_ins:
                self.load(name)

        def unload(*_: Any) -> None:
            if name not in self._stand_ins:
                self.unload(name)

        module = self.module.get_submodule(name)
        return [module.register_forward_pre_hook(load), module.register_forward_hook(unload)]


def _dots(name: str) -> Iterator[int]:
    """Yield the ends of the names of the modules that hold a module; 0 for the model."""
    yield 0
    yield from (end for end, letter in enumerate(name) if letter == ".")


@contextmanager
def _on_cpu() -> Iterator[None]:
    """Let ``module.device`` be the CPU: it is the device of the first parameter, here ``meta``."""
    of_cpu: Any = property(lambda _: torch.device("cpu"))
    with patch.object(PreTrainedModel, "device", of_cpu):
        yield


def run_layer(layer: nn.Module, hidden: Tensor, arguments: LayerArguments) -> Tensor:
    """Return the output of a decoder layer, [B, T, hidden]."""
    with torch.inference_mode():
        if arguments.added is not None:
            hidden = hidden + arguments.added
        output = layer(hidden, *arguments.args, **arguments.kwargs)
    result: Tensor = output[0] if isinstance(output, tuple) else output
    return result


@dataclass(slots=True)
class _Recorded:
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


class _Recording:
    """Runs of a model whose layers are replaced by recorders."""

    def __init__(self, layers: int, run_first: Callable[..., Any]) -> None:
        self.layers, self._run_first = layers, run_first
        self.current = _Recorded()
        self._rest: tuple[Any, ...] | None = None
        """Second result of a layer beside the hidden states; None for a layer that returns those
        alone."""
        self._is_known = False

    def run(self, module: nn.Module, batch: Mapping[str, Tensor], scale: float = 1.0) -> _Recorded:
        """Return the arguments of all layers in one run."""
        self.current = _Recorded(scale)
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
        self, module: nn.Module, batch: Mapping[str, Tensor], first: _Recorded
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


class _Recorder(nn.Module):
    """Stand-in for a layer that records its arguments and returns its input."""

    def __init__(self, layer: nn.Module, recording: _Recording) -> None:
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
