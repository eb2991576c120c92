"""What an artifact can be."""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """The kinds of artifact; a pass accepts some and produces one."""

    TORCH = "torch"
    """A model that torch loads: a transformers directory, or ``config.json`` + ``model.safetensors`` of a family of ours."""
    QUANTIZED = "quantized"
    """A model of a family of ours whose layers are rounded to integers, and ``quantization.json`` that says how."""
    AWQ = "awq"
    """A model that torch loads, with weights of a few bits, as ``quantization_config`` in its config.json tells."""
    ADAPTER = "adapter"
    """A LoRA delta and the digest of the model that it belongs to."""
    ONNX = "onnx"
    """``model.onnx``, with its external data beside it."""
    ENGINE = "engine"
    """A TensorRT engine and ``engine.json``."""


OF_FAMILIES = frozenset({Kind.TORCH, Kind.QUANTIZED, Kind.AWQ})
"""Kinds whose config.json names a family: torch computes them, and their facts are known without loading them."""
