"""Shards of a packed checkpoint, each written completely, read back and compared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from compressor.artifacts.errors_from_os import writing
from compressor.errors import NumericalError, ParityError
from compressor.models.checkpoint.companions import copy_companions
from compressor.models.checkpoint.layout import CONFIG, INDEX
from compressor.models.checkpoint.stored_tensors import DTYPES
from compressor.models.families.transformers.streaming import StreamedCheckpoint
from compressor.models.quantized.packed_linear import PackedLinear
from compressor.models.quantized.weight_grid import QUANTIZATION_CONFIG
from passes.awq.settings import QuantizationSettings

_SHARD_BYTES = 1 << 30
_METADATA = {"format": "pt"}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


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
        safetensors.torch.save_file(dict(sorted(tensors.items())), part, metadata=_METADATA)
        part.replace(file)


def write_float_shards(
    folder: Path, checkpoint: StreamedCheckpoint, names: Iterable[str], dtype: torch.dtype
) -> None:
    """Write tensors that are not packed into shards of about 1 GiB.

    A few megabytes are in memory at a time.
    """
    shards: list[list[str]] = []
    free_bytes = 0
    for name in names:
        size = checkpoint.dtype_and_shape(name)[1].numel() * dtype.itemsize
        if not shards or size > free_bytes:
            shards.append([])
            free_bytes = _SHARD_BYTES
        shards[-1].append(name)
        free_bytes -= size
    for number, shard in enumerate(shards):
        _write_in_pieces(folder / f"others-{number:05d}.safetensors", checkpoint, shard, dtype)


def _write_in_pieces(
    file: Path, checkpoint: StreamedCheckpoint, names: Iterable[str], dtype: torch.dtype
) -> None:
    """Write a safetensors file: header length, JSON header with offsets, and the raw tensors."""
    header: dict[str, Any] = {"__metadata__": _METADATA}
    end = 0
    for name in names:
        stored_dtype, shape = checkpoint.dtype_and_shape(name)
        written_dtype = dtype if stored_dtype.is_floating_point else stored_dtype
        start, end = end, end + shape.numel() * written_dtype.itemsize
        header[name] = {
            "dtype": _DTYPE_NAMES[written_dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with writing(file):
        part = file.with_suffix(".part")
        with part.open("wb") as handle:
            handle.write(len(text).to_bytes(8, "little") + text)
            for name in names:
                for piece in checkpoint.chunks(name):
                    values = cast_float(name, piece, dtype)
                    handle.write(values.view(torch.uint8).numpy().tobytes())
        part.replace(file)


def assemble_checkpoint(
    shards: list[Path],
    out: Path,
    tree: Mapping[str, Any],
    quantization: Mapping[str, Any],
    dtype: torch.dtype,
    parent: Path,
) -> None:
    """Write the packed checkpoint: shards, index, config.json, tokenizer and processor.

    Args:
        shards: complete shards in the work folder; they are copied under their final names.
        out: the folder of the checkpoint.
        tree: the parent's config.json.
        quantization: `quantization_config` of config.json.
        dtype: dtype of the tensors that are not packed.
        parent: the parent's folder, from which tokenizer, processor and licence are copied.
    """
    weight_map: dict[str, str] = {}
    total_size = 0
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        for number, file in enumerate(shards, start=1):
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            with safetensors.safe_open(file, framework="pt") as shard:
                weight_map |= dict.fromkeys(shard.keys(), name)
            total_size += file.stat().st_size
            shutil.copyfile(file, out / name)
            (out / name).chmod(0o644)
        index = {
            "metadata": {"total_size": total_size},
            "weight_map": dict(sorted(weight_map.items())),
        }
        (out / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
        dtype_name = str(dtype).removeprefix("torch.")
        config = {**tree, QUANTIZATION_CONFIG: quantization, "dtype": dtype_name}
        config.pop("torch_dtype", None)
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (out / CONFIG).write_text(text, encoding="utf-8")
        copy_companions(parent, out)
