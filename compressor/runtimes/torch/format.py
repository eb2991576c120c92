"""Formats that torch executes: folders whose config.json names a model family."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from compressor.errors import CompressError, ModelError, UsageError
from compressor.foreign_files.json_files import read_json
from compressor.models.attention_patterns.record import read_attention_pattern
from compressor.models.facts import ModelFacts, facts_of
from compressor.runtimes.decoding import EncoderDecoder, EncoderDecoderOptions, GenerationLimits
from compressor.runtimes.foreign.contract import EXPORT_FROM_PYTHON
from compressor.runtimes.foreign.folders import sentence_modules
from compressor.runtimes.foreign.identify import identify
from compressor.runtimes.format_records import LowPrecision
from compressor.runtimes.formats import Format
from compressor.runtimes.rows import RowDecoder, RowOptions

if TYPE_CHECKING:
    from compressor.data.contract import Batch
    from compressor.runtimes.formats import TensorReader
    from compressor.runtimes.layers import Layers
    from compressor.runtimes.session import Session
    from compressor.runtimes.tensor_listing import ListedTensor

_CONFIG = "config.json"
_QUANTIZATION = "quantization.json"
_PACKING = "quantization_config"
_WHOLE_MODEL = frozenset({_CONFIG, "model.safetensors", "model.safetensors.index.json"})
"""Files that stand for the folder they lie in."""


class FamilyFormat(Format):
    """A model of an installed family, described by config.json, with safetensors weights."""

    runtime: ClassVar[str | None] = "torch"
    restorable_layers: ClassVar[bool] = True
    way_around: ClassVar[str] = f"load it with transformers, and {EXPORT_FROM_PYTHON}"
    """Remedy for a checkpoint of transformers that the family does not support."""

    def recognizes(self, path: Path) -> bool:
        """Return True if config.json describes a model of a family, in this format's variant."""
        folder = _folder_of(path)
        config = None if folder is None else _read_config(folder)
        return folder is not None and config is not None and self.is_variant(folder, config)

    @abstractmethod
    def is_variant(self, path: Path, config: Mapping[str, Any]) -> bool:
        """Return True if the folder holds this format's variant of a family's model."""

    def title(self, path: Path) -> str:
        """Return the family, or class and model type of a checkpoint of transformers."""
        config = _read_config(path) or {}
        model_type, classes = config.get("model_type"), config.get("architectures")
        if not config:
            return f"weights without a {_CONFIG} that describes their model"
        if model_type is None:
            return f"a model of the family {config.get('family')}"
        names = ", ".join(map(str, classes)) if isinstance(classes, list) and classes else None
        return f"a checkpoint of transformers: {names or 'class not named'} ({model_type})"

    def describe(self, path: Path) -> list[tuple[str, str]]:
        """Return the family and, for a checkpoint of transformers, its model type."""
        config = _read_config(path) or {}
        rows = [("family", str(config.get("family", "transformers")))] if config else []
        if (model_type := config.get("model_type")) is not None:
            rows.append(("model type", str(model_type)))
        if modules := sentence_modules(path):
            rows.append(("sentence-transformers", ", ".join(kind for kind, _ in modules)))
        if (pattern := read_attention_pattern(path)) is not None:
            kept = sorted({layer.kept for layer in pattern.layers if layer is not None})
            rows.append(("local heads", f"{pattern.local_heads}, of {kept} keys at most"))
        return rows

    def files(self, path: Path) -> Mapping[str, Path]:
        """Return config, weights that count, and the files of tokenizer and processor."""
        from compressor.models.checkpoint.companions import model_files

        return {file.relative_to(path).as_posix(): file for file in model_files(path)}

    def tensor_listing(self, path: Path) -> tuple[ListedTensor, ...] | None:
        """Return the tensors of the safetensors files that count."""
        from compressor.models.checkpoint.weight_files import read_weight_files
        from compressor.runtimes.tensor_listing import listed

        weights = read_weight_files(path)
        if not weights.files:
            return None
        return listed(tensor.entry for tensor in weights.checked().tensors.values())

    def notes(self, path: Path) -> tuple[str, ...]:
        """Return differences between config.json and weights, and weights that are not read."""
        from compressor.models.checkpoint.description import read_description
        from compressor.models.checkpoint.weight_files import unread_weights

        description = read_description(path)
        unread = unread_weights(description.weights)
        if not unread:
            return description.notes
        counted = ", ".join(file.name for file in description.weights.files[:1])
        names = ", ".join(file.name for file in unread[:3]) + (" …" if len(unread) > 3 else "")
        return (*description.notes, f"{path}: {counted} counts; not read: {names}")

    def check(self, path: Path) -> None:
        """Check config.json and every weight; see ``Format.check``."""
        from compressor.models.checkpoint.description import read_description
        from compressor.models.checkpoint.finite import check_finite

        read_description(path)
        check_finite(path)

    def facts(self, path: Path) -> ModelFacts:
        """Return family, architecture, parameters and MACs from config.json."""
        try:
            return facts_of(path)
        except ModelError as error:
            if error.remedy is not None or "model_type" not in (_read_config(path) or {}):
                raise
            raise ModelError(error.what, remedy=self.way_around) from error

    def open_session(self, path: Path, *, threads: int, device: str = "cpu") -> Session:
        """Open the module in eager inference mode."""
        from compressor.runtimes.torch.session import TorchSession

        return TorchSession(path, threads, device)

    def open_layers(self, path: Path, threads: int) -> Layers:
        """Open the module with hooks on its layers."""
        from compressor.runtimes.torch.layers import TorchLayers
        from compressor.runtimes.torch.session import TorchSession

        return TorchLayers.from_session(TorchSession(path, threads, "cpu"))

    def generation_limits(self, path: Path) -> GenerationLimits:
        """Return the limits of a checkpoint of transformers; other families do not generate."""
        from compressor.runtimes.torch.decoder import limits_of

        limits = limits_of(path)
        return super().generation_limits(path) if limits is None else limits

    def open_encoder_decoder(self, path: Path, options: EncoderDecoderOptions) -> EncoderDecoder:
        """Open a checkpoint of transformers with its own key-value cache."""
        from compressor.runtimes.torch.decoder import TorchEncoderDecoder

        self._refuse_fast_prompts(path, fast_prompts=options.fast_prompts)
        return TorchEncoderDecoder(path, options)

    def open_rows(self, path: Path, options: RowOptions) -> RowDecoder:
        """Open a checkpoint of transformers with a key-value cache for each row."""
        from compressor.runtimes.torch.rows import TorchRows

        self._refuse_fast_prompts(path, fast_prompts=options.fast_prompts)
        if options.adapters:
            raise UsageError(
                f"{path} holds no ONNX graph: --adapter needs one with slots for adapters",
                remedy="export it with `export-onnx` and `decoder: {adapter_slots: [...]}`",
            )
        return TorchRows(path, options)

    def _refuse_fast_prompts(self, path: Path, *, fast_prompts: bool) -> None:
        if fast_prompts:
            raise UsageError(
                f"{path} holds no ONNX graph: --fast-prompts needs packed weights in ONNX",
                remedy="export the awq artifact with export-onnx, or leave --fast-prompts out",
            )

    def tensors(self, path: Path) -> Mapping[str, TensorReader]:
        """Return the tensors of the safetensors files, one in memory at a time."""
        from compressor.runtimes.torch.tensors import stored_tensors

        return stored_tensors(path)


class Torch(FamilyFormat):
    """A float model: a checkpoint of transformers, or a model of another family."""

    name = "torch"
    summary = "float weights in safetensors beside a config.json"

    def recognizes(self, path: Path) -> bool:
        """Return True also for a folder with a broken or missing config.json beside weights.

        Opening it then names everything that is wrong. Models of other libraries are left to
        ``foreign``.
        """
        folder = _folder_of(path)
        if folder is None:
            return False
        if _read_config(folder) is not None:
            return super().recognizes(path)
        is_broken = (folder / _CONFIG).is_file() or any(folder.glob("model*.safetensors"))
        return is_broken and path.is_dir() and identify(path) is None

    def is_variant(self, path: Path, config: Mapping[str, Any]) -> bool:
        """Return True where nothing is quantized."""
        return not (path / _QUANTIZATION).is_file() and config.get(_PACKING) is None


class Quantized(FamilyFormat):
    """A model whose layers are rounded to INT8 grids, as the ``qat`` pass writes it."""

    name = "quantized"
    summary = "a torch model with INT8 grids in quantization.json"

    def is_variant(self, path: Path, config: Mapping[str, Any]) -> bool:
        """Return True where quantization.json states the grids."""
        return (path / _QUANTIZATION).is_file()

    def low_precision(self, path: Path, batch: Batch, threads: int) -> LowPrecision:
        """State that torch simulates the integers in float."""
        return LowPrecision(
            reasons=("torch simulates the rounding in float: `export-onnx` writes the integers",)
        )


class Packed(FamilyFormat):
    """Weights of 2 to 8 bits, as the ``awq`` pass writes them: AutoAWQ or compressed-tensors."""

    name = "packed"
    summary = "packed weights of 2 to 8 bits (AutoAWQ or compressed-tensors) beside a config.json"
    former_names = ("awq",)
    way_around = "start from the checkpoint before its weights were quantized"

    def is_variant(self, path: Path, config: Mapping[str, Any]) -> bool:
        """Return True where config.json has a ``quantization_config``."""
        is_packed = config.get(_PACKING) is not None
        return is_packed and not (path / _QUANTIZATION).is_file()

    def describe(self, path: Path) -> list[tuple[str, str]]:
        """Return the family and the packing's method."""
        packing = (_read_config(path) or {}).get(_PACKING)
        method = packing.get("quant_method") if isinstance(packing, dict) else None
        return [*super().describe(path), ("packing", str(method or "method not named"))]

    def tensors(self, path: Path) -> Mapping[str, TensorReader]:
        """Return the dequantized weights; the checkpoint is read whole."""
        from compressor.runtimes.torch.tensors import dequantized_tensors

        return dequantized_tensors(path)

    def low_precision(self, path: Path, batch: Batch, threads: int) -> LowPrecision:
        """State that torch computes with unpacked weights."""
        return LowPrecision(
            reasons=(
                "torch unpacks the weights to float32: they are executed packed by vLLM, "
                "transformers, and ONNX Runtime after `export-onnx`",
            )
        )


def _folder_of(path: Path) -> Path | None:
    """Return the folder of a model, which may be named by one of its files; None for others."""
    if path.is_dir():
        return path
    return path.parent if path.name in _WHOLE_MODEL and path.is_file() else None


def _read_config(path: Path) -> Mapping[str, Any] | None:
    """Return config.json if it describes a model of a family, else None."""
    try:
        config = read_json(path / _CONFIG, ModelError, remedy=None)
    except CompressError:
        return None
    is_model = isinstance(config, dict) and not config.keys().isdisjoint({"family", "model_type"})
    return config if is_model else None
