"""Checkpoints processed part by part: only the weights of the current part are in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from compressor.models.families.transformers.checkpoint import Checkpoint
from compressor.models.families.transformers.layouts import LAYOUTS

LayerArguments = tuple[tuple[Any, ...], Mapping[str, Any]]
"""Positional and keyword arguments of a decoder layer, beside the hidden states."""


class StreamedCheckpoint(Checkpoint):
    """A checkpoint of a language model, run up to its first decoder layer part by part."""

    def __init__(self, folder: Path, tree: Mapping[str, Any]) -> None:
        """Read the headers and build the module without weights; see ``Checkpoint``."""
        super().__init__(folder, tree)
        layout = LAYOUTS[tree["model_type"]]
        self.layers_name = layout.layers_name
        self.vision_name = layout.vision

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers."""
        return cast("nn.ModuleList", self.module.get_submodule(self.layers_name))

    def first_layer_inputs(
        self, batches: Callable[[], Iterator[Mapping[str, Tensor]]]
    ) -> Iterator[tuple[Tensor, list[LayerArguments]]]:
        """Yield, for each batch, the input of the first layer and the arguments of every layer.

        Only the rows of the embedding that a batch uses are read. Images pass the vision tower
        first, with one of its blocks in memory at a time.

        Args:
            batches: returns the batches of model inputs.

        Yields:
            Hidden states [B, T, hidden], and the other arguments of each layer.
        """
        embedding_name = f"{self.layers_name.rpartition('.')[0]}.embed_tokens"
        embedding: Any = self.module.get_submodule(embedding_name)
        padding_id = embedding.padding_idx
        embedding.forward = self._embedding_of_rows(embedding_name)
        embedding.padding_idx = None  # refers to the whole table; matters to gradients alone
        hooks = [hook for part in self.vision_parts() for hook in self._load_during_forward(part)]
        layers, stack = list(self.layers), self.layers
        try:
            for batch in batches():
                arguments: list[LayerArguments] = []
                hidden: list[Tensor] = []
                for number, layer in enumerate(layers):
                    is_last = number == len(layers) - 1
                    stack[number] = _Recorder(layer, arguments, hidden, is_last)
                try:
                    with torch.inference_mode():
                        self.module(**batch)
                except _LastLayerReached:
                    pass
                yield hidden[0].clone(), arguments
        finally:
            for number, layer in enumerate(layers):
                stack[number] = layer
            del embedding.forward
            embedding.padding_idx = padding_id
            self.unload(embedding_name)
            for hook in hooks:
                hook.remove()

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

    def vision_parts(self) -> list[str]:
        """Return the modules with weights that the vision tower calls in turn; none without one."""
        if self.vision_name is None:
            return []
        names = []
        for name, child in self.module.get_submodule(self.vision_name).named_children():
            full_name = f"{self.vision_name}.{name}"
            if isinstance(child, nn.ModuleList):
                names += [f"{full_name}.{number}" for number in range(len(child))]
            else:
                names.append(full_name)
        return [name for name in names if self.names_below(name)]

    def _load_during_forward(self, name: str) -> list[RemovableHandle]:
        """Hook a module so that its weights are in memory only while it runs."""

        def load(*_: Any) -> None:
            self.load(name)

        def unload(*_: Any) -> None:
            self.unload(name)

        module = self.module.get_submodule(name)
        return [module.register_forward_pre_hook(load), module.register_forward_hook(unload)]


def run_layer(layer: nn.Module, hidden: Tensor, arguments: LayerArguments) -> Tensor:
    """Return the output of a decoder layer, [B, T, hidden]."""
    args, kwargs = arguments
    with torch.inference_mode():
        output = layer(hidden, *args, **kwargs)
    result: Tensor = output[0] if isinstance(output, tuple) else output
    return result


class _LastLayerReached(Exception):  # noqa: N818  not an error: it ends the forward pass
    """Raised by the recorder of the last layer."""


class _Recorder(nn.Module):
    """Stand-in for a layer that records its arguments and returns its input."""

    def __init__(
        self,
        layer: nn.Module,
        arguments: list[LayerArguments],
        hidden: list[Tensor],
        is_last: bool,
    ) -> None:
        super().__init__()
        object.__setattr__(self, "_layer", layer)
        self._arguments, self._hidden, self._is_last = arguments, hidden, is_last

    def __getattr__(self, name: str) -> Any:
        """Return attributes that the model reads from its layers, such as the attention type."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._layer, name)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Record the arguments; return ``hidden_states``, [B, T, hidden]."""
        if not self._hidden:
            self._hidden.append(hidden_states)
        self._arguments.append((args, kwargs))
        if self._is_last:
            raise _LastLayerReached
        return hidden_states
