"""Checkpoints of transformers, read once: the same tensors whether whole or part by part.

Nothing is downloaded, and no code that comes with a checkpoint is run. What is read equals what
``from_pretrained`` reads: the files of the index, the library's own names, its dtype, and ties.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor.errors import ModelError, NumericalError
from compressor.models.checkpoint.safetensors_files import open_tensors
from compressor.models.checkpoint.stored_tensors import StoredTensors
from compressor.models.checkpoint.weight_files import read_weight_files
from compressor.models.families.transformers.computed_tensors import computed_tensors
from compressor.models.families.transformers.conversion import Conversions
from compressor.models.families.transformers.file_names import FileNames
from compressor.models.families.transformers.modules import build_on_meta
from compressor.models.families.transformers.stored_names import compare_names
from compressor.models.quantized.packed_checkpoint import PackedTensors
from compressor.models.quantized.weight_grid import is_packed


class Checkpoint:
    """A checkpoint with its module, whose tensors are loaded when they are needed.

    Attributes:
        folder: the checkpoint.
        module: the whole model in eval mode; parameters that are not loaded are on ``meta``.
        dtype: dtype in which float tensors are read, by transformers' rule: that of config.json,
            otherwise that of the first stored float. Packed checkpoints are read as float32,
            which holds their weights exactly.
        names: tensors of the class that the files hold; of tied ones, the one that is stored.
    """

    def __init__(self, folder: Path, tree: Mapping[str, Any]) -> None:
        """Read the headers and build the module without weights.

        Args:
            folder: the checkpoint.
            tree: its config.json, with a head that is tied in fact (``compare_headers``).

        Raises:
            ModelError: tensors are missing, unexpected, of another shape, or named twice; the
                message names all of them.
        """
        self.folder = folder
        self.module = build_on_meta(tree)
        self._stored = StoredTensors(read_weight_files(folder))
        self._packed = PackedTensors(self._stored, tree) if is_packed(tree) else None
        stored = self._stored.entries if self._packed is None else self._packed.names
        self._state = self.module.state_dict()
        """Tensors of the class by name, for their dtypes and shapes."""
        self._conversions = Conversions(self.module, stored)
        self.dtype = self._find_dtype(tree)
        self._ties: dict[str, str] = dict(self.module.all_tied_weights_keys)
        self.names = sorted(self._conversions.targets - self._duplicates())
        missing = self._state.keys() - self._conversions.targets - self._ties.keys()
        self._computed = computed_tensors(self.module, sorted(missing))
        """Tensors that no file holds, and that the class computes."""
        self._check()

    def _duplicates(self) -> set[str]:
        """Return the tied tensors whose source is stored too, with equal values."""
        targets = self._conversions.targets
        return {name for name, source in self._ties.items() if {name, source} <= targets}

    def _find_dtype(self, tree: Mapping[str, Any]) -> torch.dtype:
        if self._packed is not None:
            return torch.float32
        if name := tree.get("dtype") or tree.get("torch_dtype"):
            return cast("torch.dtype", getattr(torch, str(name)))
        first = min(tensor.file for tensor in self._stored.entries.values())
        with open_tensors(first) as file:
            dtypes = (self._stored.dtype_and_shape(name)[0] for name in file.keys())  # noqa: SIM118
            return next((dtype for dtype in dtypes if dtype.is_floating_point), torch.float32)

    def _check(self) -> None:
        if self._packed is None:
            shapes = {name: entry.entry.shape for name, entry in self._stored.entries.items()}
        else:
            shapes = self._packed.shapes()
        if problems := compare_names(self.module, self._conversions, shapes).problems:
            raise ModelError(
                f"{self.folder} does not hold the weights that config.json describes:\n"
                + "\n".join(f"    {problem}" for problem in problems),
                remedy="take config.json and the safetensors files from the same checkpoint",
            )

    def file_names(self, module: nn.Module) -> FileNames:
        """Return the names in the files of the tensors of a module of the class."""
        shapes = {name: entry.entry.shape for name, entry in self._stored.entries.items()}
        return FileNames(cast("PreTrainedModel", module), self._conversions, shapes)

    def tensors(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield tensors of the class, floats in ``dtype``.

        Raises:
            NumericalError: values exceed the range of ``dtype``.
        """
        read = self._stored.read if self._packed is None else self._packed.read
        for name, value in self._conversions.convert(names, read):
            yield name, self._cast(name, value)

    def _mapped(self) -> Iterator[tuple[str, Tensor]]:
        """Yield all tensors; those that are stored as they are read share the files' memory."""
        if self._packed is not None:
            yield from self.tensors(self.names)
            return
        stored = dict(self._stored.mapped(self._stored.entries))
        for name, value in self._conversions.convert(self.names, stored.__getitem__):
            yield name, self._cast(name, value)

    def _cast(self, name: str, value: Tensor) -> Tensor:
        if not value.is_floating_point() or value.dtype == self.dtype:
            return value
        converted = value.to(self.dtype)
        if not bool(converted.isfinite().all()) and bool(value.isfinite().all()):
            raise NumericalError(
                f"{self.folder}: {name} holds values up to {float(value.abs().max()):g}, too large "
                f"for the {str(self.dtype).removeprefix('torch.')} of config.json",
                remedy="set `dtype` in config.json to that of the files",
            )
        return converted

    def rows(self, name: str, rows_R: Tensor) -> Tensor:
        """Return the rows of a matrix with the indices ``rows_R``, in ``dtype``.

        Raises:
            IndexError: a row is not in the matrix.
        """
        stored = self._stored_name(name)
        if stored is not None:
            return self._cast(name, self._stored.rows(stored, rows_R))
        [(_, value)] = self.tensors([name])
        return value[rows_R]

    def chunks(self, name: str) -> Iterator[Tensor]:
        """Yield the values of a tensor in order, a part of it in memory at a time if possible."""
        stored = self._stored_name(name)
        if stored is None:
            yield from (value.flatten() for _, value in self.tensors([name]))
            return
        for chunk in self._stored.chunks(stored):
            yield self._cast(name, chunk)

    def _stored_name(self, name: str) -> str | None:
        """Return the name in the files of a tensor that is stored as it is read, else None."""
        renamed = self._conversions.renamed(name)
        return renamed if renamed in self._stored.entries else None

    def dtype_and_shape(self, name: str) -> tuple[torch.dtype, torch.Size]:
        """Return the dtype and shape with which a tensor is read."""
        parameter = self._state[name]
        is_float = parameter.is_floating_point()
        return self.dtype if is_float else parameter.dtype, parameter.shape

    def source(self, name: str) -> str:
        """Return the tensor whose values a tensor has: itself, or the stored one of a tied pair."""
        if name in self.names:
            return name
        pairs = {source: name for name, source in self._ties.items()}
        return {**pairs, **self._ties}[name]

    def names_below(self, prefix: str) -> list[str]:
        """Return the names of the stored tensors of a module."""
        return [name for name in self.names if name.startswith(f"{prefix}.")]

    def load(self, name: str) -> nn.Module:
        """Return a submodule with its weights in float32."""
        module = self.module.get_submodule(name)
        start = f"{name}."
        weights = {
            key.removeprefix(start): value.float()
            for key, value in self.tensors(self.names_below(name))
        }
        module.load_state_dict(weights | self.computed_below(name), assign=True)
        return module.requires_grad_(False)

    def unload(self, name: str) -> None:
        """Move the parameters of a submodule to ``meta``; buffers, which no file holds, stay."""
        move_to_meta(self.module.get_submodule(name))

    def computed_below(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors of a module that the class computes, by their names in it."""
        start = f"{prefix}."
        return {
            name.removeprefix(start): value
            for name, value in self._computed.items()
            if name.startswith(start)
        }

    def load_all(self) -> PreTrainedModel:
        """Return the module with all weights in ``dtype``; tied ones share their memory.

        Tensors that need no conversion are mapped from the files.
        """
        weights = {**dict(self._mapped()), **self._computed}
        self.module.load_state_dict(weights, strict=False, assign=True)
        for target in self._ties:
            source = self.source(target)
            if source == target:  # the other of the pair takes its values from it
                target, source = self._ties[target], target
            parent = self.module.get_submodule(target.rpartition(".")[0])
            setattr(parent, target.rpartition(".")[2], self.module.get_parameter(source))
        return self.module.requires_grad_(True)


def move_to_meta(part: nn.Module) -> None:
    """Move the parameters of a module to the device ``meta``; buffers stay."""
    for module in part.modules():
        for key, value in module.named_parameters(recurse=False):
            empty = torch.empty_like(value, device="meta")
            setattr(module, key, nn.Parameter(empty, requires_grad=False))
