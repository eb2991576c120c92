"""LoRA adapters in the layout of PEFT: read and compared, not executed by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.errors import ModelError
from compressor.foreign_files.json_files import read_json_object
from compressor.runtimes.foreign.safetensors_kinds import MERGE_ADAPTER
from compressor.runtimes.formats import Format

if TYPE_CHECKING:
    from compressor.runtimes.formats import TensorReader
    from compressor.runtimes.tensor_listing import ListedTensor

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"


class Adapter(Format):
    """A low-rank increment to the weights of a base model (LoRA, Hu et al. 2021)."""

    name = "adapter"
    summary = f"a PEFT adapter: {_CONFIG} and {_WEIGHTS}"
    precedence = 1
    default_remedy = MERGE_ADAPTER

    def recognizes(self, path: Path) -> bool:
        """Return True for a folder with PEFT's adapter_config.json, or one of its two files."""
        folder = path.parent if path.name in {_CONFIG, _WEIGHTS} and path.is_file() else path
        return (folder / _CONFIG).is_file()

    def title(self, path: Path) -> str:
        """Return the method of the adapter."""
        return f"a PEFT adapter ({self._config(path).get('peft_type', 'method not named')})"

    def tensor_listing(self, path: Path) -> tuple[ListedTensor, ...] | None:
        """Return the matrices of the adapter; None where they are pickled."""
        from compressor.runtimes.tensor_listing import safetensors_tensors

        weights = path / _WEIGHTS
        return safetensors_tensors([weights]) if weights.is_file() else None

    def describe(self, path: Path) -> list[tuple[str, str]]:
        """Return the method, rank, scale, target modules and base model that PEFT recorded."""
        config = self._config(path)
        labels = {
            "peft_type": "method",
            "r": "rank",
            "lora_alpha": "alpha",
            "target_modules": "target modules",
            "base_model_name_or_path": "base model",
        }
        return [
            (label, ", ".join(map(str, value)) if isinstance(value, list) else str(value))
            for key, label in labels.items()
            if (value := config.get(key)) is not None
        ]

    def check(self, path: Path) -> None:
        """Check the config and that every tensor is finite."""
        from compressor.models.checkpoint.finite import check_files_finite

        self._config(path)
        check_files_finite(path, [path / _WEIGHTS])

    def tensors(self, path: Path) -> Mapping[str, TensorReader]:
        """Return the factors A and B of each target module, by PEFT's names."""
        from compressor.runtimes.torch.tensors import tensors_of_file

        return tensors_of_file(path / _WEIGHTS)

    def _config(self, path: Path) -> Mapping[str, object]:
        return read_json_object(path / _CONFIG, ModelError, remedy="copy the adapter again")
