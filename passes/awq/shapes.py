"""Which linear layers a checkpoint has, whether they can be packed, and what that takes."""

from __future__ import annotations

from typing import Any

from torch import nn

from compressor.artifacts.store import Artifact
from compressor.errors import RequirementError
from compressor.models.checkpoint.files import read_description
from compressor.models.families.transformers.checkpoint import streamed
from compressor.models.families.transformers.config import CheckpointConfig
from compressor.models.families.transformers.layouts import decoder_of
from compressor.models.families.transformers.linears import layers_of, sites_of
from compressor.models.quantized.description import WeightGrid
from compressor.models.quantized.packed_formats import FORMATS
from passes.awq.step import AwqConfig


def check_shapes(config: AwqConfig, parent: Artifact) -> None:
    """Whether every linear layer of a checkpoint can be packed so.

    Raises:
        RequirementError: layers do not fit: all are named, with what would.
    """
    _, described = read_description(parent.model)
    assert isinstance(described, CheckpointConfig)  # noqa: S101  as `is_checkpoint` found it
    kind, tree = FORMATS[config.format], described.tree
    shapes = shapes_of(tree)
    _check_vision(config, tree)
    _check_head(config, tree)
    problems = {
        one: found
        for one, (outputs, inputs) in shapes.items()
        if (
            found := list(
                dict.fromkeys(
                    why for grid in config.grids for why in kind.problems(grid, outputs, inputs)
                )
            )
        )
    }
    if problems:
        sizes = [
            size
            for size in (128, 64, 32, 16)
            if all(inputs % size == 0 for _, inputs in shapes.values())
        ]
        raise RequirementError(
            f"these layers cannot be packed with {' or '.join(str(grid.bits) for grid in config.grids)} bits in groups of "
            f"{config.group_size} as {config.format}:\n"
            + "\n".join(f"    {one}: {'; '.join(why)}" for one, why in problems.items()),
            remedy=f"group sizes that fit: {', '.join(map(str, sizes)) or 'none of 128, 64, 32, 16'}, or -1",
        )
    least = min(effective_bits(tree, grid) for grid in config.grids)
    if config.effective_bits is not None and config.effective_bits < least:
        raise RequirementError(
            f"`effective_bits` is {config.effective_bits}, and 2 bits in groups of {config.group_size} take {least:.3f} already",
            remedy="ask for more, or take larger groups",
        )


def _check_vision(config: AwqConfig, tree: dict[str, Any]) -> None:
    """Whether a vision tower's linear layers can be packed as they are to be."""
    if config.vision is None:
        return
    if decoder_of(tree).layout.vision is None:
        raise RequirementError(
            f"`vision` is set, and {tree['model_type']} has no vision tower", remedy="leave it out"
        )
    kind, module = FORMATS[config.format], streamed(tree)
    problems = {
        name: why
        for name, one in module.get_submodule(str(decoder_of(tree).layout.vision)).named_modules()
        if isinstance(one, nn.Linear)
        and (why := kind.problems(config.vision, one.out_features, one.in_features))
    }
    if problems:
        raise RequirementError(
            "these layers of the vision tower cannot be packed so:\n"
            + "\n".join(f"    {name}: {'; '.join(why)}" for name, why in problems.items()),
            remedy="set `vision.group_size: -1`, a scale for each row",
        )


def _check_head(config: AwqConfig, tree: dict[str, Any]) -> None:
    """Whether there is a head of its own, and whether it can be packed as it is to be."""
    if config.head is None:
        return
    decoder = decoder_of(tree)
    if decoder.tied:
        raise RequirementError(
            "`head` is set, and the head is the embedding's table, which stays",
            remedy="leave it out",
        )
    if why := FORMATS[config.format].problems(config.head, decoder.vocabulary, decoder.hidden):
        raise RequirementError(
            f"the head cannot be packed so: {'; '.join(why)}",
            remedy="set another `head.group_size`",
        )


def shapes_of(tree: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Linear layer in a decoder layer to its outputs and inputs."""
    decoder = decoder_of(tree)
    query, key = decoder.heads * decoder.head_width, decoder.key_heads * decoder.head_width
    outputs = {
        "q_proj": (query, decoder.hidden),
        "k_proj": (key, decoder.hidden),
        "v_proj": (key, decoder.hidden),
        "o_proj": (decoder.hidden, query),
        "gate_proj": (decoder.ffn, decoder.hidden),
        "up_proj": (decoder.ffn, decoder.hidden),
        "gate_up_proj": (2 * decoder.ffn, decoder.hidden),
        "down_proj": (decoder.hidden, decoder.ffn),
    }
    stack = layers_of(decoder.layout)
    return {
        f"{stack}.*.{name}": outputs[name.rpartition(".")[2]]
        for site in sites_of(tree)
        for name in site.linears
    }


def weights_of(tree: dict[str, Any]) -> int:
    """How many weights are packed."""
    return decoder_of(tree).layers * sum(
        outputs * inputs for outputs, inputs in shapes_of(tree).values()
    )


def effective_bits(tree: dict[str, Any], grid: WeightGrid) -> float:
    """Of the packed weights, with their share of scales and zero-points."""
    shapes = list(shapes_of(tree).values())
    total = sum(outputs * inputs for outputs, inputs in shapes)
    return sum(outputs * inputs * grid.effective_bits(inputs) for outputs, inputs in shapes) / total
