"""Adapters in the layout of PEFT, executed in torch beside the weights of their base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from compressor.artifacts.files import size_bytes
from compressor.errors import ModelError, UsageError
from compressor.foreign_files.json_files import read_json_object
from compressor.models.adapters.base import BASE, locate_base, read_base
from compressor.models.adapters.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from compressor.models.facts import ModelFacts, facts_of
from compressor.runtimes.format_records import Cost, SampleShapes
from compressor.runtimes.formats import Format

if TYPE_CHECKING:
    from compressor.runtimes.decoding import GenerationLimits
    from compressor.runtimes.formats import TensorReader
    from compressor.runtimes.layers import Layers
    from compressor.runtimes.session import Session
    from compressor.runtimes.tensor_listing import ListedTensor


class Adapter(Format):
    """A small increment to the weights of a base model: LoRA (Hu et al. 2021), (IA)³ and others.

    It is executed where ``base.json`` states its base: what is measured is base and adapter
    together. An adapter of another tool is read and compared.
    """

    name = "adapter"
    summary = f"a PEFT adapter: {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}"
    runtime: ClassVar[str | None] = "torch"
    precedence = 1
    default_remedy = (
        "run it beside its base: `autoglm-compress generate ONNX --adapter`; or merge it into a "
        "float base in Python: PEFT's `merge_and_unload()`, then `save_pretrained`"
    )

    def recognizes(self, path: Path) -> bool:
        """Return True for a folder with PEFT's adapter_config.json, or one of its two files."""
        is_file = path.name in {ADAPTER_CONFIG, ADAPTER_WEIGHTS} and path.is_file()
        folder = path.parent if is_file else path
        return (folder / ADAPTER_CONFIG).is_file()

    def title(self, path: Path) -> str:
        """Return the method of the adapter."""
        return f"a PEFT adapter ({self._config(path).get('peft_type', 'method not named')})"

    def tensor_listing(self, path: Path) -> tuple[ListedTensor, ...] | None:
        """Return the matrices of the adapter; None where they are pickled."""
        from compressor.runtimes.tensor_listing import safetensors_tensors

        weights = path / ADAPTER_WEIGHTS
        return safetensors_tensors([weights]) if weights.is_file() else None

    def describe(self, path: Path) -> list[tuple[str, str]]:
        """Return method, rank, scale, target modules and base model, and the base's digest."""
        config = self._config(path)
        labels = {
            "peft_type": "method",
            "r": "rank",
            "lora_alpha": "alpha",
            "target_modules": "target modules",
            "base_model_name_or_path": "base model",
        }
        rows = [
            (label, ", ".join(map(str, value)) if isinstance(value, list) else str(value))
            for key, label in labels.items()
            if (value := config.get(key)) is not None
        ]
        if (path / BASE).is_file():
            rows.append(("base digest", read_base(path).digest[:12]))
        return rows

    def check(self, path: Path) -> None:
        """Check the config, that there are tensors, and that every one is finite."""
        from compressor.models.checkpoint.finite import check_files_finite

        self._config(path)
        check_files_finite(path, [path / ADAPTER_WEIGHTS])
        if not self.tensor_listing(path):
            raise ModelError(
                f"{path / ADAPTER_WEIGHTS} has no tensors: the adapter changes nothing",
                remedy="copy the adapter again, or train it again",
            )

    def facts(self, path: Path) -> ModelFacts:
        """Return the facts of base and adapter together; the size is the adapter's own.

        Of an adapter that does not state its base, and of one whose base is not there, only the
        size is known.
        """
        size = size_bytes(path)
        if not (path / BASE).is_file() or (base := locate_base(path)) is None:
            return ModelFacts(size_bytes=size)
        facts, listing = facts_of(base), self.tensor_listing(path) or ()
        if facts.parameters is None:
            return replace(facts, size_bytes=size)
        added = sum(tensor.values for tensor in listing)
        return replace(facts, size_bytes=size, parameters=facts.parameters + added)

    def cost(self, path: Path, sample_shapes: SampleShapes) -> Cost:
        """Return the cost of base and adapter together, which are needed to run either."""
        facts, base = self.facts(path), None
        if (path / BASE).is_file():
            base = locate_base(path)
        base_bytes = 0 if base is None else facts_of(base).size_bytes or 0
        return Cost(size_bytes(path) + base_bytes, facts.parameters, facts.macs)

    def open_session(self, path: Path, *, threads: int, device: str = "cpu") -> Session:
        """Open the base with the adapter in it; the base's digest is checked."""
        from compressor.runtimes.torch.session import AdaptedSession

        return AdaptedSession(path, threads, device)

    def generation_limits(self, path: Path) -> GenerationLimits:
        """Raise UsageError: the graph of the base generates, and takes the adapter."""
        raise UsageError(
            f"{path} is an adapter, which generates text beside its base alone",
            remedy="export its base with `decoder: {adapter_slots: […]}`, and name the adapter: "
            f"autoglm-compress generate ONNX --adapter {path}",
        )

    def open_layers(self, path: Path, threads: int) -> Layers:
        """Open the base with the adapter in it, with hooks on its layers."""
        from compressor.runtimes.torch.layers import TorchLayers
        from compressor.runtimes.torch.session import AdaptedSession

        return TorchLayers.from_session(AdaptedSession(path, threads, "cpu"))

    def tensors(self, path: Path) -> Mapping[str, TensorReader]:
        """Return the factors A and B of each target module, by PEFT's names."""
        from compressor.runtimes.torch.tensors import tensors_of_file

        return tensors_of_file(path / ADAPTER_WEIGHTS)

    def _config(self, path: Path) -> Mapping[str, object]:
        return read_json_object(path / ADAPTER_CONFIG, ModelError, remedy="copy the adapter again")
