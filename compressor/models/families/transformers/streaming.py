"""A checkpoint one part at a time: no more of its weights in memory than asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from compressor.artifacts.errors_from_os import reading
from compressor.errors import ModelError
from compressor.models.checkpoint.safetensors_files import TensorEntry, read_header
from compressor.models.families.transformers.checkpoint import streamed
from compressor.models.families.transformers.layouts import LAYOUTS
from compressor.models.families.transformers.linears import layers_of

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""By safetensors' names."""

_PIECE = 1 << 22

Arguments = tuple[tuple[Any, ...], Mapping[str, Any]]
"""What a decoder layer is called with beside the hidden states."""


class CheckpointFiles:
    """The tensors of a checkpoint, in their files until they are asked for."""

    def __init__(self, folder: Path) -> None:
        """Read the headers."""
        self.folder = folder
        self.entries = {
            entry.name: (file, entry)
            for file in sorted(folder.glob("*.safetensors"))
            for entry in read_header(file)
        }
        """Tensor name to its file and place."""

    def tensors(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """Tensors as they are in the files."""
        for name in names:
            yield name, _read(*self.entries[name])

    def rows(self, name: str, rows_R: Tensor) -> Tensor:
        """Some rows of a matrix, as they are in its file."""
        file, entry = self.entries[name]
        width = (entry.end - entry.start) // entry.shape[0]
        content = bytearray(width * len(rows_R))
        with reading(file), file.open("rb") as handle:
            for number, row in enumerate(rows_R.tolist()):
                handle.seek(entry.start + row * width)
                handle.readinto(memoryview(content)[number * width : (number + 1) * width])
        return torch.frombuffer(content, dtype=DTYPES[entry.dtype]).view(len(rows_R), -1)

    def kind(self, name: str) -> tuple[torch.dtype, torch.Size]:
        """Of a tensor as it is in its file."""
        _, entry = self.entries[name]
        return DTYPES[entry.dtype], torch.Size(entry.shape)

    def pieces(self, name: str) -> Iterator[Tensor]:
        """A tensor's values in their order, a few megabytes at a time, [≤ 2²²]."""
        file, entry = self.entries[name]
        with reading(file), file.open("rb") as handle:
            handle.seek(entry.start)
            left = entry.end - entry.start
            while left:
                content = bytearray(handle.read(min(left, _PIECE * DTYPES[entry.dtype].itemsize)))
                left -= len(content)
                yield torch.frombuffer(content, dtype=DTYPES[entry.dtype])

    def below(self, prefix: str) -> list[str]:
        """The names of the tensors of a module."""
        return [name for name in self.entries if name.startswith(f"{prefix}.")]


class StreamedCheckpoint(CheckpointFiles):
    """A transformers checkpoint whose weights stay in their files until a part is asked for."""

    def __init__(self, folder: Path, tree: Mapping[str, Any]) -> None:
        """Read the headers.

        Raises:
            ModelError: tensors that the architecture has are in no file, or of another shape: all are named.
        """
        super().__init__(folder)
        self.module = streamed(tree)
        """The whole model, its parameters on the device ``meta``."""
        layout = LAYOUTS[tree["model_type"]]
        self.layers_name = layers_of(layout)
        self.vision_name = layout.vision
        tied = set(getattr(self.module, "_tied_weights_keys", None) or ())
        wanted = {
            name: tuple(one.shape)
            for name, one in self.module.named_parameters()
            if name not in tied
        }
        problems = [f"missing: {name}" for name in wanted if name not in self.entries]
        problems += [
            f"{name}: {list(self.entries[name][1].shape)} in the file, {list(shape)} in the model"
            for name, shape in wanted.items()
            if name in self.entries and self.entries[name][1].shape != shape
        ]
        if problems:
            raise ModelError(
                f"{folder} does not hold the weights that config.json describes:\n"
                + "\n".join(f"    {one}" for one in sorted(problems)),
                remedy="take config.json and the safetensors files from the same checkpoint",
            )

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers."""
        return cast("nn.ModuleList", self.module.get_submodule(self.layers_name))

    def load(self, name: str) -> nn.Module:
        """A submodule with its weights, in float32."""
        module = self.module.get_submodule(name)
        start = len(name) + 1
        found = {key[start:]: value.float() for key, value in self.tensors(self.below(name))}
        module.load_state_dict(found, assign=True)
        return module.requires_grad_(False)

    def unload(self, name: str) -> None:
        """Let the weights of a submodule go; its buffers, which come from no file, stay."""
        for module in self.module.get_submodule(name).modules():
            for key, value in module.named_parameters(recurse=False):
                setattr(
                    module,
                    key,
                    nn.Parameter(torch.empty_like(value, device="meta"), requires_grad=False),
                )

    def entering(
        self, batches: Callable[[], Iterator[Mapping[str, Tensor]]]
    ) -> Iterator[tuple[Tensor, list[Arguments]]]:
        """For each batch the hidden states that enter the first layer, [B, T, hidden], and what each layer is called with.

        Images go through the vision tower first, one of its blocks in memory at a time.
        """
        name = f"{self.layers_name.rpartition('.')[0]}.embed_tokens"
        embedding = self.module.get_submodule(name)
        forward = embedding.forward
        layers = list(self.layers)
        stack = self.layers

        def of_rows(ids: Tensor) -> Tensor:
            used, places = torch.unique(ids, return_inverse=True)
            embedding.weight = nn.Parameter(
                self.rows(f"{name}.weight", used).float(), requires_grad=False
            )
            found: Tensor = forward(places)
            return found

        embedding.forward = of_rows
        hooks = [hook for part in self.vision_parts() for hook in self._loaded_when_called(part)]
        try:
            for batch in batches():
                seen: list[Arguments] = []
                first: list[Tensor] = []
                for number, layer in enumerate(layers):
                    stack[number] = _Recorder(layer, seen, first, number == len(layers) - 1)
                try:
                    with torch.inference_mode():
                        self.module(**batch)
                except _EnoughError:
                    pass
                yield first[0].clone(), seen
        finally:
            for number, layer in enumerate(layers):
                stack[number] = layer
            del embedding.forward
            self.unload(name)
            for hook in hooks:
                hook.remove()

    def vision_parts(self) -> list[str]:
        """The modules with weights that a vision tower calls one after another; none where there is no tower."""
        if self.vision_name is None:
            return []
        found = []
        for name, child in self.module.get_submodule(self.vision_name).named_children():
            below = (
                [f".{number}" for number in range(len(child))]
                if isinstance(child, nn.ModuleList)
                else [""]
            )
            found += [f"{self.vision_name}.{name}{one}" for one in below]
        return [name for name in found if self.below(name)]

    def _loaded_when_called(self, name: str) -> list[RemovableHandle]:
        """A part's weights are in memory while it runs."""

        def load(*_: Any) -> None:
            self.load(name)

        def unload(*_: Any) -> None:
            self.unload(name)

        part = self.module.get_submodule(name)
        return [part.register_forward_pre_hook(load), part.register_forward_hook(unload)]


def result_of(layer: nn.Module, hidden: Tensor, arguments: Arguments) -> Tensor:
    """What a decoder layer makes of hidden states, [B, T, hidden]."""
    args, kwargs = arguments
    with torch.inference_mode():
        found = layer(hidden, *args, **kwargs)
    result: Tensor = found[0] if isinstance(found, tuple) else found
    return result


def _read(file: Path, entry: TensorEntry) -> Tensor:
    """A tensor's bytes alone: a mapped file would count as memory."""
    content = bytearray(entry.end - entry.start)
    with reading(file), file.open("rb") as handle:
        handle.seek(entry.start)
        handle.readinto(content)
    if not content:
        return torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
    return torch.frombuffer(content, dtype=DTYPES[entry.dtype]).view(entry.shape)


class _EnoughError(Exception):
    """The last layer has been reached."""


class _Recorder(nn.Module):
    """Stands where a layer stands, hands on what it is given, and remembers what it was called with."""

    def __init__(
        self, layer: nn.Module, seen: list[Arguments], first: list[Tensor], last: bool
    ) -> None:
        super().__init__()
        object.__setattr__(self, "_layer", layer)
        self._seen, self._first, self._last = seen, first, last

    def __getattr__(self, name: str) -> Any:
        """What the model looks up of its layers, such as the kind of attention."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._layer, name)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[B, T, hidden]."""
        if not self._first:
            self._first.append(hidden_states)
        self._seen.append((args, kwargs))
        if self._last:
            raise _EnoughError
        return hidden_states
