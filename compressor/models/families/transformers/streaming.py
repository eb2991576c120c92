"""Checkpoints processed part by part: only the weights of the current part are in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from compressor.models.families.transformers.checkpoint import Checkpoint, move_to_meta
from compressor.models.families.transformers.conv1d import replace_conv1d, transpose
from compressor.models.families.transformers.experts.split import split_experts, split_tensors
from compressor.models.families.transformers.generic.decoder_parts import (
    decoder_parts,
    leaf_parts,
)
from compressor.models.families.transformers.layer_recording import (
    LayerArguments,
    LayerRecorder,
    LayerRecording,
    NotStreamableError,
)
from compressor.models.families.transformers.modules import build_on_meta


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
    def _recorders(self, count: int | None = None) -> Iterator[LayerRecording]:
        """Replace the layers by recorders; a run ends after ``count`` of them, by default all."""
        layers, stack = list(self.layers), self.layers
        recording = LayerRecording(count or len(layers), self._run_first_layer)
        self._behind = {f"{self.layers_name}.{n}": layer for n, layer in enumerate(layers)}
        for number, layer in enumerate(layers):
            stack[number] = LayerRecorder(layer, recording)
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
        """Return a ``forward`` for the embedding that reads only the rows it looks up.

        A class may take shares of all rows in place of indices, as Ovis 2 does for parts of images.
        """
        embedding: Any = self.module.get_submodule(name)
        forward = embedding.forward
        stored_name = self.source(f"{name}.weight")

        def embed(token_ids: Tensor) -> Tensor:
            if token_ids.is_floating_point():
                rows_R, indices = torch.arange(embedding.num_embeddings), token_ids
            else:
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
