"""A language model as a thing that is told tokens and says how it rates each word as the next one.

Shapes: T tokens, V words.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compressor.artifacts.kinds import Kind
from compressor.errors import UsageError
from compressor.graphs.decoder.interface import CONTEXT
from compressor.models.checkpoint.files import read_description
from compressor.models.families.transformers.config import CheckpointConfig
from compressor.models.families.transformers.images import image_inputs
from compressor.models.families.transformers.layouts import decoder_of, text_of
from compressor.runtimes.memory import check_room

Array = np.ndarray[Any, Any]


class Stepper(ABC):
    """An open model in the middle of a text."""

    @abstractmethod
    def feed(self, ids_T: Array, images: Mapping[str, Array] | None = None) -> Array:
        """The scores of what follows, float32 [V], once these tokens have been said too.

        Args:
            ids_T: int64.
            images: in these tokens, which are then the first: a processor's arrays.
        """


def open_stepper(
    kind: Kind,
    folder: Path,
    *,
    threads: int,
    room: int,
    sees: bool = False,
    fast_prompts: bool = False,
) -> Stepper:
    """Open an artifact's model for a text of at most ``room`` tokens; it ``sees`` where there are images in it.

    ``fast_prompts``: as of ``OnnxDecoder``.

    Raises:
        UsageError: it does not generate, has room for less, does not look at images, has no packed weights in ONNX to read
            prompts fast with, or there is not so much memory.
        ModelError: it cannot be opened.
    """
    context = context_of(kind, folder)
    if room > context:
        raise UsageError(
            f"{room} tokens of prompt and answer, and the model attends to {context}",
            remedy="shorten the prompt, or lower --max-tokens",
        )
    if sees and not _sees(kind, folder):
        raise UsageError(f"{folder} holds a model of text alone: it does not look at images")
    if kind is Kind.ONNX:
        return _OnnxStepper(folder, threads, room, fast_prompts)
    if fast_prompts:
        raise UsageError(
            f"{folder} holds no ONNX graph: prompts are read fast by those with packed weights alone",
            remedy="export the awq artifact with export-onnx, or leave --fast-prompts out",
        )
    decoder = decoder_of(_tree(folder))
    check_room(2 * 4 * decoder.layers * decoder.key_heads * decoder.head_width * room, 1, room)
    return _TorchStepper(folder, threads)


def context_of(kind: Kind, folder: Path) -> int:
    """How many tokens a model can attend to.

    Raises:
        UsageError: it does not generate.
    """
    if kind is Kind.ONNX:
        from compressor.graphs.files import read_graph

        told = {one.key: one.value for one in read_graph(folder).metadata_props}
        if CONTEXT in told:
            return int(told[CONTEXT])
    if kind in {Kind.TORCH, Kind.AWQ} and (tree := _tree(folder)):
        return int(text_of(tree).get("max_position_embeddings", 2048))
    raise UsageError(
        f"{folder} holds no model that generates text",
        remedy="name a checkpoint of transformers, its awq artifact, or the onnx artifact of either",
    )


def _sees(kind: Kind, folder: Path) -> bool:
    if kind is Kind.ONNX:
        from compressor.graphs.decoder.interface import VISION

        return (folder / VISION).is_file()
    return bool(image_inputs(_tree(folder)))


def _tree(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint of transformers; nothing for other models."""
    described = read_description(folder)[1]
    return described.tree if isinstance(described, CheckpointConfig) else {}


class _OnnxStepper(Stepper):
    def __init__(self, folder: Path, threads: int, room: int, fast_prompts: bool) -> None:
        from compressor.runtimes.onnxruntime.decoder.decoder import OnnxDecoder

        self._folder, self._threads = folder, threads
        self._decoder = OnnxDecoder(
            folder, threads, room=room, lasting=True, fast_prompts=fast_prompts
        )

    def feed(self, ids_T: Array, images: Mapping[str, Array] | None = None) -> Array:
        shown = None if images is None else self._shown(images)
        scores: Array = self._decoder.feed(ids_T[None], images=shown)[0, -1]
        return scores

    def _shown(self, images: Mapping[str, Array]) -> Any:
        """Opens the tower for as long as it looks."""
        from compressor.models.families.transformers.images import GRIDS, KINDS, PIXELS
        from compressor.runtimes.onnxruntime.decoder.images import VisionTower

        tower = VisionTower(self._folder, self._threads, "cpu")
        return tower.shown(*(images[name][None] for name in (KINDS, PIXELS, GRIDS)))


class _TorchStepper(Stepper):
    def __init__(self, folder: Path, threads: int) -> None:
        import torch
        from transformers import DynamicCache

        from compressor.models.checkpoint.loading import load_module

        torch.set_num_threads(threads)
        self._module, self._cache = load_module(folder), DynamicCache()

    def feed(self, ids_T: Array, images: Mapping[str, Array] | None = None) -> Array:
        import torch

        given = {"input_ids": ids_T, **(images or {})}
        with torch.inference_mode():
            tensors = {
                name: torch.from_numpy(np.ascontiguousarray(array))[None]
                for name, array in given.items()
            }
            found = self._module(
                **tensors, past_key_values=self._cache, use_cache=True, logits_to_keep=1
            )
        scores: Array = found["logits"][0, -1].float().numpy()
        return scores
