"""Models of families in and out of folders; ``files`` says how such a folder looks. torch is imported where it is used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.config.discovery import FAMILIES, load
from compressor.config.record import Record
from compressor.models.checkpoint.files import check_finite, read_description, write_description
from compressor.models.contract import Family
from compressor.models.quantized.quantization import (
    QUANTIZATION,
    Quantization,
    read_quantization,
    write_quantization,
)

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "check_finite",
    "load_module",
    "read_description",
    "save_module",
    "save_quantized",
]


def load_module(folder: Path, device: str = "cpu") -> nn.Module:
    """The model in ``folder``, in eval mode, with the dtypes of its files; tied weights stay tied.

    torch's global generator is left as it was.

    Raises:
        ModelError: as ``read_description``; or tensors are missing, too many, or of another shape or kind: all are named.
    """
    import torch

    name, config = read_description(folder)
    family: Family[Any] = load(FAMILIES, name)
    with torch.random.fork_rng(devices=[]):
        quantized = (folder / QUANTIZATION).is_file()
        module = (
            _quantized(family.build(config), folder) if quantized else family.load(config, folder)
        )
    return module.eval().to(device)


def _quantized(module: nn.Module, folder: Path) -> nn.Module:
    from compressor.models.checkpoint.weights import fill
    from compressor.models.quantized.fake_quantization import shaped

    return fill(shaped(module, read_quantization(folder)), folder)


def save_quantized(
    module: nn.Module, family: str, config: Record, quantization: Quantization, folder: Path
) -> None:
    """Write description, grids and weights of a model whose layers are integer.

    Raises:
        StorageError: the disk is full, or the folder may not be written.
    """
    from compressor.models.checkpoint.weights import save_weights

    found: Family[Any] = load(FAMILIES, family)
    save_weights(module, folder)
    write_description(found.name, found.version, config, folder)
    write_quantization(quantization, folder)


def save_module(
    module: nn.Module, family: str, config: Record, folder: Path, companions: Path | None = None
) -> None:
    """Write description and weights into ``folder``; equal weights give equal bytes.

    Args:
        module: what is saved.
        family: the name of its family.
        config: its architecture.
        folder: where to.
        companions: the model that it was made from, whose tokenizer or other files come along.

    Raises:
        StorageError: the disk is full, or the folder may not be written.
    """
    found: Family[Any] = load(FAMILIES, family)
    found.save(module, config, folder, companions)
