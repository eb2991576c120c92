"""Packed checkpoints, read tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from compressor.errors import ModelError
from compressor.models.checkpoint.layout import read_config
from compressor.models.checkpoint.stored_tensors import StoredTensors
from compressor.models.checkpoint.weight_files import read_weight_files
from compressor.models.quantized.packed_formats import PACKED_FORMATS
from compressor.models.quantized.packed_linear import PackedLinear
from compressor.models.quantized.packing_schemes import TRANSPOSED_LAYERS
from compressor.models.quantized.weight_grid import QUANTIZATION_CONFIG, WeightGrid, is_packed


class PackedTensors:
    """Tensors of a checkpoint with packed layers, by the names that they have in a float one."""

    def __init__(self, stored: StoredTensors, tree: Mapping[str, Any]) -> None:
        """Group the tensors of each packed layer.

        Args:
            stored: the tensors as they are in the files.
            tree: config.json.

        Raises:
            ModelError: the packing is not supported, or tensors of a packed layer are missing; the
                message names all of them.
        """
        self.stored = stored
        config = tree[QUANTIZATION_CONFIG]
        if (method := config.get("quant_method")) not in PACKED_FORMATS:
            raise ModelError(
                f"{stored.folder}: its weights are quantized by {method!r}; "
                f"supported: {', '.join(PACKED_FORMATS)}"
            )
        self._format = PACKED_FORMATS[method]
        self._grid_of = self._format.grids(config)
        self._transposed = frozenset(config.get(TRANSPOSED_LAYERS, ()))
        self.layers: dict[str, set[str]] = {}
        """Packed layer to the suffixes of its tensors."""
        plain = []
        for name in stored.entries:
            layer, _, suffix = name.rpartition(".")
            if suffix in self._format.suffixes:
                self.layers.setdefault(layer, set()).add(suffix)
            else:
                plain.append(name)
        self.names = sorted([*plain, *(f"{layer}.weight" for layer in self.layers)])
        """Names of all tensors."""
        self._check_layers()

    def _check_layers(self) -> None:
        problems = []
        for layer, suffixes in self.layers.items():
            unneeded = {"weight_zero_point"} if self._grid_of(layer).symmetric else set()
            if missing := set(self._format.suffixes) - unneeded - suffixes:
                problems.append(f"{layer} has no {', '.join(sorted(missing))}")
        if problems:
            raise ModelError(
                f"{self.stored.folder}: packed layers are incomplete:\n"
                + "\n".join(f"    {problem}" for problem in problems),
                remedy="copy the checkpoint again",
            )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all tensors, those of packed weights unpacked.

        Raises:
            ModelError: tensors of packed layers do not fit together; the message names all.
        """
        problems: list[str] = []
        shapes = {name: self.stored.entries[name].entry.shape for name in self._plain_names()}
        for layer in self.layers:
            outputs, inputs = self.size(layer)
            is_transposed = layer in self._transposed
            shapes[f"{layer}.weight"] = (inputs, outputs) if is_transposed else (outputs, inputs)
            problems += self._misfits(layer)
        self._refuse(problems)
        return shapes

    def _misfits(self, layer: str) -> list[str]:
        """Return which tensors of a layer do not fit together, from their headers."""
        outputs, inputs = self.size(layer)
        grid = self._grid_of(layer)
        if reasons := self._format.problems(grid, outputs, inputs):
            return [f"{layer}: {reason}" for reason in reasons]
        problems = []
        for suffix, expected in self._format.shapes(grid, outputs, inputs).items():
            entry = self.stored.entries[f"{layer}.{suffix}"].entry
            if entry.shape != expected:
                problems.append(
                    f"{layer}.{suffix}: {list(entry.shape)} in the file, {list(expected)} for "
                    f"{outputs} outputs and {inputs} inputs of {grid.bits} bits in groups of "
                    f"{grid.width(inputs)}"
                )
            if suffix in self._format.words and entry.dtype != "I32":
                problems.append(f"{layer}.{suffix}: {entry.dtype} in the file, expected I32")
        return problems

    def _refuse(self, problems: list[str]) -> None:
        """Raise a ``ModelError`` with all problems; do nothing if there are none."""
        if problems:
            raise ModelError(
                f"{self.stored.folder}: packed layers do not fit their description:\n"
                + "\n".join(f"    {problem}" for problem in problems),
                remedy="take config.json and the safetensors files from the same checkpoint",
            )

    def _plain_names(self) -> list[str]:
        return [name for name in self.names if name.removesuffix(".weight") not in self.layers]

    def size(self, layer: str) -> tuple[int, int]:
        """Return the outputs and inputs of a packed layer."""
        suffix = self._format.shape_suffix
        name = f"{layer}.{suffix}"
        entry = self.stored.entries[name].entry
        is_description = suffix == "weight_shape"
        values = self.stored.read(name).flatten().tolist() if is_description else entry.shape
        if len(values) != 2 or min(values) < 1:
            raise ModelError(
                f"{self.stored.folder}: {name} holds {list(values)}; expected two sizes",
                remedy="copy the checkpoint again",
            )
        return self._format.outputs_and_inputs((int(values[0]), int(values[1])))

    def grid(self, layer: str) -> WeightGrid:
        """Return the grid of a packed layer."""
        return self._grid_of(layer)

    def layer(self, name: str) -> PackedLinear:
        """Return a packed layer.

        Raises:
            ModelError: its tensors do not fit together.
        """
        self._refuse(self._misfits(name))
        suffixes = sorted(self.layers[name])
        values = {suffix: self.stored.read(f"{name}.{suffix}") for suffix in suffixes}
        return self._format.linear(values, self._grid_of(name))

    def read(self, name: str) -> Tensor:
        """Return a tensor: a packed weight as float32, any other as it is stored."""
        layer = name.removesuffix(".weight")
        if layer not in self.layers:
            return self.stored.read(name)
        weight_OI = self.layer(layer).dequantize()
        return weight_OI.T.contiguous() if layer in self._transposed else weight_OI


def read_dequantized(folder: Path, tree: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor by the name that it has in a float checkpoint.

    Args:
        folder: the checkpoint.
        tree: its config.json.

    Yields:
        Packed weights as float32; other tensors as they are stored.

    Raises:
        ModelError: tensors of a packed layer are missing, or the packing is not supported.
    """
    packed = PackedTensors(StoredTensors(read_weight_files(folder)), tree)
    for name in packed.names:
        yield name, packed.read(name)


def read_packed_layers(folder: Path) -> dict[str, PackedLinear]:
    """Return the packed layers of a model folder by name; none for a float model.

    Raises:
        ModelError: as ``read_dequantized``.
    """
    tree = read_config(folder)
    if not is_packed(tree):
        return {}
    packed = PackedTensors(StoredTensors(read_weight_files(folder)), tree)
    return {name: packed.layer(name) for name in packed.layers}


def packed_layers_of_widths(
    folder: Path, widths: frozenset[int]
) -> Iterator[tuple[str, PackedLinear]]:
    """Yield the packed layers of a model folder that have one of these numbers of inputs.

    One layer is read at a time; a float model has none.

    Raises:
        ModelError: as ``read_dequantized``.
    """
    tree = read_config(folder)
    if not is_packed(tree):
        return
    packed = PackedTensors(StoredTensors(read_weight_files(folder)), tree)
    for name in packed.layers:
        if packed.size(name)[1] in widths:
            yield name, packed.layer(name)
