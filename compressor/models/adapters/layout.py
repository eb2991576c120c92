"""Names of the files and tensors of adapters in PEFT's layout."""

from __future__ import annotations

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
NAME_PREFIX = "base_model.model."
"""Prefix of the names of tensors: PEFT's wrapper, and the model in it."""
