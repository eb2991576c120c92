"""LoRA adapters in the layout of PEFT: read and compared, not executed by themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.errors import ModelError
from compressor.runtimes.formats import Format

if TYPE_CHECKING:
    from compressor.runtimes.formats import TensorReader

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"


class Adapter(Format):
    """A low-rank increment to the weights of a base model (LoRA, Hu et al. 2021)."""

    name = "adapter"
    summary = f"a PEFT adapter: {_CONFIG} and {_WEIGHTS}"
    precedence = 1

    def recognizes(self, path: Path) -> bool:
        """Return True for a folder with PEFT's adapter_config.json."""
        return (path / _CONFIG).is_file()

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
        from compressor.models.checkpoint.safetensors_files import check_finite, read_header

        self._config(path)
        read_header(path / _WEIGHTS)
        check_finite(path)

    def tensors(self, path: Path) -> Mapping[str, TensorReader]:
        """Return the factors A and B of each target module, by PEFT's names."""
        from compressor.runtimes.torch.tensors import stored_tensors

        return stored_tensors(path)

    def _config(self, path: Path) -> Mapping[str, object]:
        try:
            config = json.loads((path / _CONFIG).read_bytes())
        except (OSError, ValueError) as error:
            raise ModelError(f"{path / _CONFIG} cannot be read: {error}") from error
        if not isinstance(config, dict):
            raise ModelError(f"{path / _CONFIG}: expected a mapping")
        return config
