"""From a checkpoint's folder to a folder with a decoder that generates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from onnxscript import ir

from compressor.artifacts.files import copy_file
from compressor.data.contract import Batch
from compressor.engine.contract import PassContext, PassOutput
from compressor.errors import DataError, ParityError, RequirementError
from compressor.graphs.decoder.architecture import Architecture, architecture_of
from compressor.graphs.decoder.build import DecoderGraph
from compressor.graphs.decoder.interface import (
    ATTENTION_MASK,
    CONTEXT_LENGTH_KEY,
    INPUT_IDS,
    MERGE_SIZE_KEY,
    VISION_MODEL,
)
from compressor.graphs.decoder.operators import Operators
from compressor.graphs.decoder.portable import PortableOperators
from compressor.graphs.decoder.weights import BLOCKS, Weights, block_size
from compressor.graphs.saving import file_metadata, save_checked_model
from compressor.graphs.simplify import simplify, strip_metadata
from compressor.models.checkpoint.description import read_description
from compressor.models.checkpoint.layout import CONFIG
from compressor.models.families.transformers.config import CheckpointConfig
from compressor.models.families.transformers.images import GRIDS, PIXELS, TOKEN_TYPES
from compressor.models.families.transformers.layouts import LM_HEAD
from compressor.models.families.transformers.linear_groups import decoder_layer_sites
from compressor.models.quantized.weight_grid import WeightGrid, is_packed
from compressor.runtimes.formats import open_session
from compressor.runtimes.onnxruntime.decoder.decoder import TARGET
from passes.export_onnx.decoder.caching import cache_scales
from passes.export_onnx.decoder.comparing import compare, limits_of
from passes.export_onnx.decoder.genai import write_genai_config

if TYPE_CHECKING:
    from passes.export_onnx.step import ExportOnnxConfig

Array = np.ndarray[Any, Any]
_INTEGERS, _FLOATS = 4, 1
"""MatMulNBits' `accuracy_level`: activations rounded to 8 bits by block, or products in float32."""
_BITS = frozenset({2, 4, 8})
"""That MatMulNBits reads."""
_STANDARD_BITS = frozenset({4, 8})
"""That DequantizeLinear reads."""
_WINDOWS = 4
_COMPANIONS = (
    "token",
    "vocab",
    "merges",
    "chat_template",
    "generation_config",
    "special",
    "processor",
)
"""What the names of files hold that a tokenizer, a chat or a look at images needs."""
_STAGES = 3


def is_decoder(model: Path) -> bool:
    """Whether a folder holds a checkpoint of transformers, which is built and not traced."""
    return isinstance(read_description(model).config, CheckpointConfig)


def check(config: ExportOnnxConfig, model: Path) -> None:
    """The architecture can be built, and the integers can be carried over as they are.

    Raises:
        RequirementError: not so: all that stands against it.
    """
    tree, portable = _tree(model), config.decoder.target == "portable"
    architecture = architecture_of(tree, config.decoder.context_length)
    problems = (
        _unpackable(architecture, tree, Weights(model, tree), portable=portable)
        if is_packed(tree)
        else []
    )
    if config.decoder.int8_tables and all(architecture.decoder.hidden % size for size in BLOCKS):
        problems.append(
            f"`int8_tables`: a hidden width of {architecture.decoder.hidden} is no multiple of {BLOCKS[-1]}"
        )
    if problems:
        operator = "DequantizeLinear" if portable else "MatMulNBits"
        raise RequirementError(
            f"{operator} cannot hold these integers:\n"
            + "\n".join(f"    {one}" for one in problems),
            remedy=f"pack with {'4' if portable else '2, 4'} or 8 bits, and a group_size that is a multiple of 16",
        )


def _unpackable(
    architecture: Architecture, tree: dict[str, Any], weights: Weights, *, portable: bool
) -> list[str]:
    decoder = architecture.decoder
    inputs = {"attention output": decoder.heads * decoder.head_width, "ffn output": decoder.ffn}
    bits = _STANDARD_BITS if portable else _BITS

    def unfit(names: list[str], grid: WeightGrid, width: int) -> list[str]:
        if grid.bits not in bits:
            return [f"{', '.join(names)}: {grid.bits} bits"]
        return (
            []
            if block_size(grid, width)
            else [f"{', '.join(names)}: groups of {grid.width(width)}"]
        )

    head = None if decoder.tied else weights.grid(LM_HEAD)
    problems = [] if head is None else unfit([LM_HEAD], head, decoder.hidden)
    for number in range(decoder.layers):
        for site in decoder_layer_sites(tree):
            names = [f"{architecture.root}.layers.{number}.{name}" for name in site.linears]
            grids = {weights.grid(name) for name in names}
            width = inputs.get(site.name, decoder.hidden)
            for grid in grids:
                problems += [] if grid is None else unfit(names, grid, width)
            if len(grids) > 1:
                problems.append(
                    f"{', '.join(names)}: packed in several ways, though they read one input"
                )
    return problems


def export_decoder(
    config: ExportOnnxConfig, model: Path, out: Path, context: PassContext
) -> PassOutput:
    """Build, write, compare with torch; integers of the activations only where the comparison holds.

    Raises:
        DataError: there are no samples, or they are no tokens.
        PassError: the checker refuses the graph.
        ParityError: ONNX Runtime does not compute what torch does.
    """
    tree = _tree(model)
    architecture = architecture_of(tree, config.decoder.context_length)
    parity, ranges = config.parity, config.decoder.int8_kv_cache
    windows = _windows(context, architecture, parity.data, parity.num_samples or _WINDOWS)
    calibration = (
        []
        if ranges is None
        else _windows(context, architecture, ranges.data, ranges.num_samples, spread=True)
    )
    packed = is_packed(tree) or config.decoder.int8_tables
    seen = None if architecture.images is None else _export_tower(config, tree, model, out, context)
    asked = config.decoder.accuracy_level
    portable = config.decoder.target == "portable"
    levels = (
        [asked]
        if asked is not None
        else [_INTEGERS, _FLOATS]
        if packed and not portable
        else [_FLOATS]
    )
    metadata = file_metadata(context.artifact_id, "transformers", None) | {
        TARGET: config.decoder.target,
        CONTEXT_LENGTH_KEY: str(architecture.context),
    }

    def written(level: int, scales: dict[str, Array] | None) -> tuple[ir.Model, int, bool]:
        decoder = DecoderGraph(
            architecture,
            tree,
            model,
            _operators(config, level),
            int8_tables=config.decoder.int8_tables,
            cache_scales=scales,
        )
        built = decoder.model()
        nodes = len(built.graph)
        external = save_checked_model(
            built, out, metadata, config.external_data_threshold_mb * 1_000_000
        )
        decoder.weights.packed.cache_clear()
        return built, nodes, external

    scales = None
    if calibration:
        context.progress("keys and values", 0, _STAGES, {})
        written(levels[0], None)
        scales = cache_scales(out, architecture, calibration, context.threads)
    rounded = packed or scales is not None
    for level in levels:
        context.progress("build", 0, _STAGES, {})
        built, nodes, external = written(level, scales)
        context.progress("compare", 1, _STAGES, {})
        kind = "packed" if is_packed(tree) else "torch"
        with open_session(kind, model, threads=context.threads) as reference:
            try:
                compared = compare(
                    reference, out, windows, parity, context.threads, integers=rounded
                )
            except ParityError as error:
                if level == levels[-1]:
                    raise
                context.note(f"accuracy_level {level} loses too much: {error.what}")
                continue
        break
    if not portable:  # its runtime wants ONNX Runtime's own attention
        write_genai_config(tree, architecture, model, out)
    for file in sorted(model.iterdir()):
        if file.is_file() and any(part in file.name for part in _COMPANIONS):
            copy_file(file, out / file.name)
    context.progress("done", _STAGES, _STAGES, {})
    return PassOutput(
        {
            "opset": built.graph.opset_imports[""],
            "nodes": nodes,
            "external_data": external,
            "target": config.decoder.target,
            "accuracy_level": level,
            "kv_cache": "float32" if scales is None else "int8",
            "context_length": architecture.context,
            "parity": compared,
        }
        | ({} if seen is None else {"vision": seen})
    )


def _operators(config: ExportOnnxConfig, level: int) -> Operators:
    return PortableOperators(level) if config.decoder.target == "portable" else Operators(level)


def _tree(model: Path) -> dict[str, Any]:
    described = read_description(model).config
    assert isinstance(described, CheckpointConfig)  # noqa: S101  `is_decoder` has looked
    return described.tree


def _windows(
    context: PassContext, architecture: Architecture, name: str, asked: int, *, spread: bool = False
) -> list[Batch]:
    """The first samples of a set, or with ``spread`` one from each of so many equal stretches."""
    dataset = context.data(name)
    count = min(asked, len(dataset))
    if not count:
        raise DataError(
            f"the set {name!r} is empty: the export reads windows of it", remedy="name another set"
        )
    places = np.arange(count, dtype=np.int64)
    batch = dataset.batch(places * len(dataset) // count if spread else places)
    if INPUT_IDS not in batch or batch[INPUT_IDS].shape[1] < 2:
        raise DataError(
            f"the set {name!r} holds no windows of two tokens or more (`input_ids`)",
            remedy="name a set of the source `text` with the checkpoint's `tokenizer`",
        )
    windows = [_one(batch, row) for row in range(len(batch[INPUT_IDS]))]
    longest = max(window[INPUT_IDS].shape[1] for window in windows)
    if longest > architecture.context:
        raise DataError(
            f"the set {name!r} holds windows of {longest} tokens, and the graph attends to {architecture.context}",
            remedy="name a set with a smaller `sequence_length`, or leave `decoder.context_length` out",
        )
    return windows


def _one(batch: Batch, row: int) -> Batch:
    """A sample without padding, [1, …]; with its images, where there are any."""
    length = (
        int(batch[ATTENTION_MASK][row].sum())
        if ATTENTION_MASK in batch
        else batch[INPUT_IDS].shape[1]
    )
    found = {INPUT_IDS: batch[INPUT_IDS][row : row + 1, :length]}
    if TOKEN_TYPES not in batch or not batch[TOKEN_TYPES][row].any():
        return found
    grids = batch[GRIDS][row][batch[GRIDS][row].prod(axis=-1) > 0]
    patches = int(grids.prod(axis=-1).sum())
    return found | {
        TOKEN_TYPES: batch[TOKEN_TYPES][row : row + 1, :length],
        PIXELS: batch[PIXELS][row : row + 1, :patches],
        GRIDS: grids[None],
    }


def _export_tower(
    config: ExportOnnxConfig, tree: dict[str, Any], model: Path, out: Path, context: PassContext
) -> dict[str, Any]:
    """``vision.onnx``, held against torch's tower."""
    # Only here: it imports transformers' own module of the tower, which takes a second.
    from passes.export_onnx.decoder.tower import compare_tower, onnx_from_tower, tower_of, values_of

    context.progress("vision tower", 0, 1, {})
    tower, values = tower_of(tree, model), values_of(tree)
    traced = onnx_from_tower(tower, values)
    strip_metadata(traced)
    if config.simplify:
        result = simplify(traced)
        traced = result.model
        context.note(f"vision tower: {result.summary}")
    metadata = file_metadata(context.artifact_id, "transformers", None) | {
        MERGE_SIZE_KEY: str(tower.spatial_merge_size)
    }
    save_checked_model(
        traced, out, metadata, config.external_data_threshold_mb * 1_000_000, VISION_MODEL
    )
    copy_file(model / CONFIG, out / CONFIG)  # which processor goes with it
    return compare_tower(
        tower, out, values, limits_of(config.parity, integers=False), context.threads
    )
