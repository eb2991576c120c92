"""Checks of a planned model: what a GGUF file cannot hold, without weights; no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from compressor.errors import ModelError, RequirementError
from compressor.foreign_files.json_files import read_json_object
from compressor.foreign_files.libraries import library_errors
from compressor.models.capabilities.streamed_layers import StreamedLayers
from compressor.models.facts import ModelFacts
from compressor.models.quantized.packing_schemes import planned_grids
from compressor.models.quantized.weight_grid import QUANTIZATION_CONFIG, WeightGrid
from passes.export_gguf.architectures import (
    ARCHITECTURES,
    IMAGE_ENDS,
    architecture_problem,
    fields_with_defaults,
)
from passes.export_gguf.block_types import NEAREST_REMEDY, BlockType, block_type, packing_problem
from passes.export_gguf.config import ExportGgufConfig

_FAMILY = "transformers"
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_IMAGES = "image_processor"
_NORMALIZATION = ("image_mean", "image_std")
_CHANNELS = 3


def check_planned(config: ExportGgufConfig, parent: ModelFacts) -> None:
    """Check everything that is known of a planned model, its tokenizer too.

    Raises:
        RequirementError: a GGUF file cannot hold it; the message names every offender.
    """
    if parent.family is None or parent.config is None:
        return
    if parent.family != _FAMILY:
        raise RequirementError(
            f"GGUF files hold language models of transformers, and this is one of {parent.family}",
            remedy="use `export-onnx`",
        )
    if problem := architecture_problem(parent.config):
        raise RequirementError(problem, remedy="use `export-onnx`, which exports the model")
    _check_packing(parent, parent.config)
    if parent.tokenizer_folder is not None:
        _check_tokenizer(config, parent.tokenizer_folder, parent.config)
        if ARCHITECTURES[parent.config["model_type"]].projector is not None:
            image_normalization(parent.tokenizer_folder)


def _check_tokenizer(config: ExportGgufConfig, folder: Path, tree: Mapping[str, Any]) -> None:
    from passes.export_gguf.tokenizer import TOKENIZER, name_problem, read_vocabulary

    row, size = ARCHITECTURES[tree["model_type"]], fields_with_defaults(tree)["vocab_size"]
    with library_errors(f"{folder / TOKENIZER}: it is no tokenizer", ModelError, "copy it again"):
        vocabulary = read_vocabulary(folder, size, config.pre_tokenizer, row.three_digits)
    missing = [token for token in IMAGE_ENDS if token not in vocabulary.tokens]
    if row.projector is not None and missing:
        raise RequirementError(
            f"llama.cpp writes {' and '.join(IMAGE_ENDS)} around an image, and the tokenizer has "
            f"no {', '.join(missing)}",
            remedy="take tokenizer and weights from the same checkpoint",
        )
    if config.name and (problem := name_problem(config.name, vocabulary)):
        raise RequirementError(problem, remedy="set another `name`")


def image_normalization(folder: Path) -> Mapping[str, tuple[float, ...]]:
    """Return ``image_mean`` and ``image_std`` of a checkpoint's image processor.

    Raises:
        RequirementError: the folder has no image processor that states them.
    """
    trees = [
        read_json_object(folder / name, ModelError, remedy="copy it again")
        for name in _PROCESSORS
        if (folder / name).is_file()
    ]
    # `processor_config.json` has the image processor's fields in a part of their own.
    fields = {key: value for tree in trees for key, value in tree.items()}
    fields |= {key: value for tree in trees for key, value in tree.get(_IMAGES, {}).items()}
    missing = [name for name in _NORMALIZATION if len(fields.get(name) or ()) != _CHANNELS]
    if missing:
        raise RequirementError(
            f"{folder}: no image processor states {' and '.join(missing)}, and the file of the "
            "vision tower holds them",
            remedy="copy preprocessor_config.json from the original checkpoint",
        )
    return {name: tuple(map(float, fields[name])) for name in _NORMALIZATION}


def _check_packing(parent: ModelFacts, tree: Mapping[str, Any]) -> None:
    if tree.get(QUANTIZATION_CONFIG) is None:
        return
    layers = list(_planned_layers(parent, tree))
    if problem := packing_problem(dict.fromkeys(layers)):
        raise RequirementError(problem, remedy=NEAREST_REMEDY)
    asymmetric = any(block_type(grid) is BlockType.Q4_1 for _, grid, _ in layers)
    if asymmetric and parent.gguf_scales is False:
        raise RequirementError(
            "the file stores −scale · zero-point of each group as a float16, and the scales of the "
            "`awq` step are chosen without regard to it: its weights would be rounded again",
            remedy="set `gguf_scales: true` in the `awq` step",
        )


def _planned_layers(
    parent: ModelFacts, tree: Mapping[str, Any]
) -> Iterator[tuple[str, WeightGrid, int]]:
    """Yield name, grid and inputs of the packed layers, those of one kind as one entry."""
    layers = parent.capability(StreamedLayers)
    if layers is None or not parent.sizes_known:
        return
    grids_of = planned_grids(tree[QUANTIZATION_CONFIG], parent.candidate_grids, layers.head_name)
    shapes = dict(layers.decoder)
    if not parent.candidate_grids:  # else the grid of a tower is not known yet
        shapes |= layers.towers
    if layers.head_name is not None and not layers.is_head_tied:
        shapes[layers.head_name] = layers.head
    for name, (_, inputs) in shapes.items():
        pattern = ".".join("*" if part.isdecimal() else part for part in name.split("."))
        for grid in grids_of(name):
            yield pattern, grid, inputs
