"""Fields that several sources choose for a model (``DataSource.starter``)."""

from __future__ import annotations

from pathlib import Path

from compressor.data.contract import SourceConfig, StarterInputs


def shortened(config: type[SourceConfig], model: StarterInputs) -> dict[str, int]:
    """Return ``sequence_length`` where its default is more than the model has positions for."""
    default: int = config.model_fields["sequence_length"].default
    if model.longest is None or model.longest >= default:
        return {}
    return {"sequence_length": model.longest}


def tokenizer_path(model: StarterInputs) -> Path:
    """Return the model's folder if it has a tokenizer, else the file that has to be put there."""
    file = model.folder / "tokenizer.json"
    return model.folder if file.is_file() else file
