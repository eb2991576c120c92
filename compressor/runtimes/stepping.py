"""A language model as a thing that is told tokens and says how it rates each word as the next one.

Shapes: T tokens, V words.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

from compressor.artifacts.kinds import Kind
from compressor.errors import UsageError
from compressor.models.files import read_description
from compressor.models.transformers_checkpoint.config import CheckpointConfig
from compressor.models.transformers_checkpoint.layouts import text_of

Array = np.ndarray[Any, Any]


class Stepper(ABC):
    """An open model in the middle of a text."""

    @abstractmethod
    def feed(self, ids_T: Array) -> Array:
        """The scores of what follows, float32 [V], once these tokens have been said too."""


def open_stepper(kind: Kind, folder: Path, *, threads: int, room: int) -> Stepper:
    """Open an artifact's model for a text of at most ``room`` tokens.

    Raises:
        UsageError: it does not generate, or has room for less.
        ModelError: it cannot be opened.
    """
    context = context_of(kind, folder)
    if room > context:
        raise UsageError(
            f"{room} tokens of prompt and answer, and the model attends to {context}",
            remedy="shorten the prompt, or lower --max-tokens",
        )
    if kind is Kind.ONNX:
        return _OnnxStepper(folder, threads, room)
    return _TorchStepper(folder, threads)


def context_of(kind: Kind, folder: Path) -> int:
    """How many tokens a model can attend to.

    Raises:
        UsageError: it does not generate.
    """
    if kind is Kind.ONNX and (folder / "genai_config.json").is_file():
        return int(json.loads((folder / "genai_config.json").read_bytes())["model"]["context_length"])
    if kind in {Kind.TORCH, Kind.AWQ}:
        described = read_description(folder)[1]
        if isinstance(described, CheckpointConfig):
            return int(text_of(described.tree).get("max_position_embeddings", 2048))
    raise UsageError(
        f"{folder} holds no model that generates text",
        remedy="name a checkpoint of transformers, its awq artifact, or the onnx artifact of either",
    )


class _OnnxStepper(Stepper):
    def __init__(self, folder: Path, threads: int, room: int) -> None:
        from compressor.runtimes.onnx_decoder import OnnxDecoder

        self._decoder = OnnxDecoder(folder, threads, room=room)

    def feed(self, ids_T: Array) -> Array:
        scores: Array = self._decoder.feed(ids_T[None])[0, -1]
        return scores


class _TorchStepper(Stepper):
    def __init__(self, folder: Path, threads: int) -> None:
        import torch
        from transformers import DynamicCache

        from compressor.models.loading import load_module

        torch.set_num_threads(threads)
        self._module, self._cache = load_module(folder), DynamicCache()

    def feed(self, ids_T: Array) -> Array:
        import torch

        with torch.inference_mode():
            ids = torch.from_numpy(np.ascontiguousarray(ids_T))[None]
            found = self._module(input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        scores: Array = found["logits"][0, -1].float().numpy()
        return scores
