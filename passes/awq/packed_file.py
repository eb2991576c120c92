"""Files of packed layers and the tensors beside them, each read back and compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from compressor.artifacts.errors_from_os import writing
from compressor.errors import NumericalError, ParityError
from compressor.models.quantized.packed_linear import PackedLinear
from passes.awq.settings import QuantizationSettings

METADATA = {"format": "pt"}


def cast_float(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a float tensor in ``dtype``, and any other tensor as it is; contiguous.

    Raises:
        NumericalError: values exceed the range of ``dtype``.
    """
    if not value.is_floating_point() or value.dtype == dtype:
        return value.contiguous()
    converted = value.to(dtype)
    if not bool(converted.isfinite().all()):
        raise NumericalError(
            f"{name} holds values up to {float(value.abs().max()):g}, too large for "
            f"{str(dtype).removeprefix('torch.')}",
            remedy="set `dtype: bfloat16` and `format: compressed-tensors`",
        )
    return converted.contiguous()


def tensors_beside(
    packed: Mapping[str, PackedLinear], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the tensors that are not weights of packed layers."""
    return {
        name: value for name, value in tensors.items() if name.removesuffix(".weight") not in packed
    }


def write_packed_shard(
    file: Path,
    prefix: str,
    floats: Mapping[str, Tensor],
    packed: Mapping[str, PackedLinear],
    settings: QuantizationSettings,
) -> None:
    """Write packed layers and the tensors beside them, and read the packed layers back.

    Args:
        file: the file to write.
        prefix: prefix of all tensor names.
        floats: tensors that are not packed; float tensors are converted to ``float_dtype``.
        packed: packed layers by name.
        settings: format and dtypes.

    Raises:
        NumericalError: values exceed the range of ``float_dtype``.
        ParityError: the layers that are read back differ from those written.
    """
    tensors = {
        f"{prefix}{name}": cast_float(f"{prefix}{name}", value, settings.float_dtype)
        for name, value in floats.items()
    }
    for name, layer in packed.items():
        tensors |= {
            f"{prefix}{name}.{suffix}": value
            for suffix, value in settings.format.tensors(layer).items()
        }
    _save(tensors, file)
    stored = safetensors.torch.load(file.read_bytes())
    for name, layer in packed.items():
        layer_prefix = f"{prefix}{name}."
        layer_tensors = {
            key.removeprefix(layer_prefix): value
            for key, value in stored.items()
            if key.startswith(layer_prefix)
        }
        if not settings.format.linear(layer_tensors, layer.grid).equals(layer):
            raise ParityError(
                f"{prefix}{name}: the weights read back from {file.name} differ from those written"
            )


def _save(tensors: Mapping[str, Tensor], file: Path) -> None:
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        safetensors.torch.save_file(dict(sorted(tensors.items())), part, metadata=METADATA)
        part.replace(file)
