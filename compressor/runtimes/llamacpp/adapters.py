"""LoRA adapters as GGUF files, which llama.cpp adds to a model file (``--lora``).

Such a file holds the factors of each tensor under the tensor's name, as llama.cpp's
``convert_lora_to_gguf.py`` writes them. llama.cpp compares architecture, names and shapes, and
nothing else, so the digest of the base is compared here, before the file is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from compressor.artifacts.errors_from_os import writing
from compressor.errors import MissingExtraError, ModelError, UsageError
from compressor.models.adapters.base import BASE_KEY, check_exported
from compressor.models.adapters.factors import Factors, missing_modules, read_factors
from compressor.runtimes.foreign.gguf import read_header
from compressor.runtimes.llamacpp.row_order import rows_in_file

Array = np.ndarray[Any, Any]
_LISTED = 8
"""Problems that a message lists."""
_INSIDE = "model.language_model."
_LAYER = re.compile(r"^(.*?\.)\d+\.")
_ROTATED = {"attn_q": "head_count", "attn_k": "head_count_kv"}
"""Name of a projection whose rows may have another order, to the field with its heads."""


@dataclass(frozen=True, slots=True)
class _Base:
    """The header of the model file."""

    file: Path
    fields: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    """Shape of each tensor, outputs first."""

    @property
    def architecture(self) -> str:
        return str(self.fields["general.architecture"])

    def of_architecture(self, name: str) -> Any:
        """Return a field of the architecture; None without it."""
        return self.fields.get(f"{self.architecture}.{name}")

    @property
    def sectioned_width(self) -> int | None:
        """Rotated values of a head if positions have sections; else None."""
        if self.of_architecture("rope.dimension_sections") is None:
            return None
        return int(self.of_architecture("rope.dimension_count"))


def write_gguf_adapter(file: Path, adapter: Path, target: Path) -> int:
    """Write an adapter as a GGUF file for a model file that ``export-gguf`` wrote.

    Factors are float32. The scale of the adapter is in B, and ``adapter.lora.alpha`` is the rank.

    Args:
        file: the model file.
        adapter: folder in PEFT's layout with ``base.json``.
        target: the file to write.

    Returns:
        Its size in bytes.

    Raises:
        MissingExtraError: the package gguf is not installed.
        UsageError: the model file does not state the model that it was exported from.
        ModelError: the adapter is damaged, was trained on another model, is no plain LoRA, or does
            not fit the model.
        StorageError: the file cannot be written.
    """
    if find_spec("gguf") is None:
        raise MissingExtraError("gguf", "adapters for GGUF files", "gguf")
    base = _read_base(file)
    if BASE_KEY not in base.fields:
        raise UsageError(
            f"{file} does not state the model that it was exported from",
            remedy="export that model again with `export-gguf`",
        )
    check_exported(
        adapter,
        str(base.fields[BASE_KEY]),
        file,
        remedy="export the model that the adapter was trained on with `export-gguf`",
    )
    factors = read_factors(adapter)
    names = _tensor_names(base)
    _check_fit(base, adapter, factors, names)
    partial = target.with_name(f".{target.name}.partial")
    with writing(target):
        try:
            _write(base, factors, names, partial)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        return target.stat().st_size


def _read_base(file: Path) -> _Base:
    _, fields, tensors = read_header(file)
    return _Base(file, fields, {tensor.name: tensor.shape for tensor in tensors})


def _tensor_names(base: _Base) -> dict[str, str]:
    """Return the name in the file of each linear layer, by the paths that its class may have."""
    import gguf

    kind = next(
        (key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == base.architecture), None
    )
    if kind is None:
        raise ModelError(f"{base.file}: unknown architecture {base.architecture!r}")
    mapping = gguf.get_tensor_name_map(kind, int(base.of_architecture("block_count"))).mapping
    names = {
        path: name
        for path, (_, name) in mapping.items()
        if len(base.shapes.get(f"{name}.weight", ())) == 2
    }
    # The decoder of a vision-language model, without the part of the path that llama.cpp drops.
    inside = {path.replace("model.", _INSIDE, 1): name for path, name in names.items()}
    return names | inside if base.sectioned_width is not None else names


def _check_fit(
    base: _Base, adapter: Path, factors: Mapping[str, Factors], names: Mapping[str, str]
) -> None:
    """Check that the file has a tensor for each factor, and the adapter all that it targets.

    Raises:
        ModelError: it does not.
    """
    problems = []
    for module, factor in factors.items():
        shape = factor.b_RO.shape[1], factor.a_IR.shape[0]
        if module not in names:
            problems.append(f"{module}: the file has no tensor for it")
        elif (expected := base.shapes[f"{names[module]}.weight"]) != shape:
            problems.append(f"{module} is {list(shape)}, and the tensor of the file {[*expected]}")
    written = {names[module] for module in factors if module in names}
    # The class calls its layers as the adapter does; the table has the names of other classes too.
    stems = {match.group(1) for module in factors if (match := _LAYER.match(module))}
    layers = [path for path in names if path.startswith(tuple(stems))]
    targets = {names[path] for path in missing_modules(adapter, layers, ())}
    problems += [f"{name}: the adapter targets it and has no factors" for name in targets - written]
    if problems:
        more = f"\n    and {len(problems) - _LISTED} more" if problems[_LISTED:] else ""
        raise ModelError(
            f"the adapter {adapter} does not fit {base.file}:\n"
            + "\n".join(f"    {problem}" for problem in sorted(problems)[:_LISTED])
            + more,
            remedy="copy the adapter again, or train one for the linear layers of this model",
        )


def _write(
    base: _Base, factors: Mapping[str, Factors], names: Mapping[str, str], target: Path
) -> None:
    import gguf

    writer = gguf.GGUFWriter(target, base.architecture)
    try:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        rank = next(factor.a_IR.shape[1] for factor in factors.values())
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(rank))
        writer.add_string(BASE_KEY, str(base.fields[BASE_KEY]))
        for name, array in _tensors(base, factors, names):
            writer.add_tensor(name, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _tensors(
    base: _Base, factors: Mapping[str, Factors], names: Mapping[str, str]
) -> Iterator[tuple[str, Array]]:
    """Yield A [R, I] and B [O, R] of each layer, rows of B in the order of the file."""
    for module, factor in factors.items():
        name, b_OR = names[module], factor.b_RO.T
        field = _ROTATED.get(name.rpartition(".")[2])
        if field is not None:
            heads = base.of_architecture(f"attention.{field}")
            heads = base.of_architecture("attention.head_count") if heads is None else heads
            order = rows_in_file(base.architecture, int(heads), len(b_OR), base.sectioned_width)
            b_OR = b_OR if order is None else b_OR[order]
        yield f"{name}.weight.lora_a", np.ascontiguousarray(factor.a_IR.T)
        yield f"{name}.weight.lora_b", np.ascontiguousarray(b_OR)
