"""Layers and embedding tables that a config quantizes, and models that can be quantized."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from compressor.config.discovery import closest
from compressor.errors import RequirementError
from compressor.models.architecture import Architecture
from compressor.models.capabilities.integer_storage import IntegerStorage
from compressor.models.capabilities.layer_kinds import LayerKinds
from compressor.models.capabilities.quantizable_layers import QuantizableLayers
from compressor.models.capabilities.training_heads import TrainingHeads
from compressor.models.facts import ModelFacts
from compressor.models.families.module.config import is_program
from passes.common.config import training_problems
from passes.common.field_problems import FieldProblem, check_no_problems
from passes.qat.config import QatConfig

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Selection:
    """Layers to quantize, before the sensitive ones are kept in float."""

    layers: tuple[str, ...]
    """Linear and convolutional layers, in the order of computation."""
    embeddings: tuple[str, ...]
    """Embedding tables."""
    float_layers: Mapping[str, str]
    """Layers that stay in float, and the reason as saved in quantization.json."""


def check_model(config: QatConfig, model: ModelFacts) -> None:
    """Check that a model can be saved with integer grids, and has the outputs that fields need.

    Raises:
        RequirementError: It cannot, or has not; the message names every field that does not apply.
            Models of an unknown family pass.
    """
    architecture = model.architecture()
    if architecture is None:
        return
    architecture.require(IntegerStorage)
    check_no_problems(_field_problems(config, architecture))


def _field_problems(config: QatConfig, model: Architecture) -> list[FieldProblem]:
    """Return the fields that do not apply to the model's outputs or to its kinds of layers."""
    problems = []
    if model.capability(TrainingHeads) is None:
        problems += [
            FieldProblem(
                field,
                f"a model of the family {model.family.name} has no logits to compare",
                "leave it out, and list layers that must stay in float in `ignore`",
            )
            for field in ("keep_float", "fine_tuning")
            if getattr(config, field) is not None
        ]
    elif config.fine_tuning is not None:
        training = config.fine_tuning.training
        problems += training_problems(training, "fine_tuning.training", model)
    layers = model.capability(LayerKinds)
    if config.quantize_embeddings and layers is not None and not layers.embedding_tables:
        problems.append(
            FieldProblem(
                "quantize_embeddings",
                "the model has no embedding table whose weights are used for lookups alone",
                "leave `quantize_embeddings` out",
            )
        )
    if config.ignore:
        problems += _ignore_problems(config, model)
    elif _finds_its_layers(model) and config.min_share:
        problems += _share_problems(config, model)
    return problems


def _finds_its_layers(model: Architecture) -> bool:
    """Return True if the layers are discovered from a module that can be built when planning."""
    stated = model.capability(QuantizableLayers)  # type: ignore[type-abstract]
    return stated is None and not is_program(model.config)


def _share_problems(config: QatConfig, model: Architecture) -> list[FieldProblem]:
    """Return a problem if recurrent layers alone leave less than `min_share` to quantize.

    The layers that are quantized are known once the model is traced; recurrent ones never are.
    """
    from torch import nn

    from passes.common.changed_share import count_share
    from passes.common.unweighted import build_without_values

    module = build_without_values(model)[0]
    recurrent = sum(
        parameter.numel()
        for layer in module.modules()
        if isinstance(layer, nn.RNNBase | nn.RNNCellBase)
        for parameter in layer.parameters(recurse=False)
        if parameter.ndim > 1
    )
    most = 1 - recurrent / max(count_share(module, ()).multiplied, 1)
    if most >= config.min_share:
        return []
    reason = (
        f"at most {most:.1%} of the weights that are multiplied can be quantized, since those of "
        f"recurrent layers stay in float; {config.min_share:.0%} are required"
    )
    remedy = "quantize the weights alone with `type: awq`, or set `min_share: 0`"
    return [FieldProblem("min_share", reason, remedy)]


def _ignore_problems(config: QatConfig, model: Architecture) -> list[FieldProblem]:
    """Return the patterns of `ignore` that match no module of the model, and so no layer."""
    from passes.common.unweighted import build_without_values

    modules = build_without_values(model)[0].named_modules()
    names = [name for name, module in modules if any(True for _ in module.parameters(False))]
    unmatched = _unmatched(config.ignore, names)
    if not unmatched:
        return []
    what = f"{', '.join(unmatched)} matches no layer of this model"
    near = [match for pattern in unmatched if (match := _similar(pattern, names))]
    remedy = f"did you mean {', '.join(near)}?" if near else f"its layers: {', '.join(names)}"
    return [FieldProblem("ignore", what, remedy)]


def _unmatched(patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    return [
        pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in names)
    ]


def _similar(pattern: str, names: Sequence[str]) -> str | None:
    """Return the most similar pattern for modules that the model has."""
    heads = {
        ".".join(parts[:end])
        for name in names
        for parts in [name.split(".")]
        for end in range(1, len(parts) + 1)
    }
    head, star, _ = pattern.partition("*")
    match = closest(head.rstrip("."), sorted(heads))
    return f"{match}.*" if match and star else match


def select_layers(config: QatConfig, layers: QuantizableLayers, module: nn.Module) -> Selection:
    """Return the layers and embedding tables that the config quantizes.

    Raises:
        RequirementError: A pattern of ``ignore`` matches nothing, no layer is left, or
            ``quantize_embeddings`` is set and no table is left.
    """
    tables = unshared_embeddings(module) if config.quantize_embeddings else ()
    names = (*layers.names, *tables)
    unmatched = _unmatched(config.ignore, names)
    if unmatched:
        raise RequirementError(
            f"`ignore` matches no layer of this model: {', '.join(unmatched)}",
            remedy=f"its layers are {', '.join(names)}",
        )
    selected = {
        name for name in names if not any(fnmatchcase(name, pattern) for pattern in config.ignore)
    }
    quantized = tuple(name for name in layers.names if name in selected)
    if not quantized:
        raise RequirementError(
            "no linear or convolutional layer is left to quantize", remedy="shorten `ignore`"
        )
    embeddings = tuple(name for name in tables if name in selected)
    if config.quantize_embeddings and not embeddings:
        raise RequirementError(
            "`quantize_embeddings` has no effect: no embedding table is left to quantize",
            remedy="leave `quantize_embeddings` out",
        )
    float_layers = {name: "excluded" for name in layers.names if name not in selected}
    float_layers |= layers.left_out
    return Selection(quantized, embeddings, float_layers)


def unshared_embeddings(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the embedding tables whose weights no other module uses."""
    from torch import nn

    uses = Counter(
        id(parameter)
        for submodule in module.modules()
        for parameter in submodule.parameters(recurse=False)
    )
    return tuple(
        name
        for name, submodule in module.named_modules()
        if isinstance(submodule, nn.Embedding) and uses[id(submodule.weight)] == 1
    )
