"""Two encoders as one model: transformers' VisionTextDualEncoder, with projections of its own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.artifacts.files import copy_file
from compressor.models.architecture import Architecture
from compressor.models.capabilities.embeddings import Embeddings
from compressor.models.capabilities.signature import Signature
from compressor.models.checkpoint.companions import companion_files, copy_companions
from compressor.models.facts import ModelFacts, planned_facts
from compressor.models.quantized.weight_grid import QUANTIZATION_CONFIG
from passes.common.field_problems import FieldProblem, check_no_problems

if TYPE_CHECKING:
    from torch import nn

_FAMILY, _POOLED = "transformers", "pooler_output"
_INPUTS = {"image": "pixel_values", "text": "input_ids"}
"""Kind of an encoder to the input by which it is known."""
_MODULES = {"image": "vision_model", "text": "text_model"}
_PROCESSORS = ("*processor_config.json", "LICENSE*", "NOTICE*")
"""Patterns of the files that the model takes from its encoder of images."""
_REMEDY = (
    "name an encoder of images and one of texts, both classes of transformers that return "
    "`pooler_output`, such as ViTModel and BertModel"
)


@dataclass(frozen=True, slots=True)
class JoinedModel:
    """The architecture of the model of two encoders, and which of them is which."""

    architecture: Architecture
    is_image_first: bool
    """True if the parent is the encoder of images."""

    def modules(self) -> tuple[str, str]:
        """Return the names of the parent and of the other encoder in the model."""
        names = (_MODULES["image"], _MODULES["text"])
        return names if self.is_image_first else names[::-1]


def join_facts(parent: ModelFacts, other: ModelFacts, projection_dim: int) -> ModelFacts:
    """Return the facts of the model of two encoders; of unknown ones nothing is known.

    Raises:
        RequirementError: the encoders cannot be joined.
    """
    architectures = parent.architecture(), other.architecture()
    if architectures[0] is None or architectures[1] is None:
        return ModelFacts()
    return planned_facts(join(architectures[0], architectures[1], projection_dim).architecture)


def join(parent: Architecture, other: Architecture, projection_dim: int) -> JoinedModel:
    """Return the architecture of a model of two encoders, whose towers are these.

    Raises:
        RequirementError: the encoders are not one of images and one of texts, or not of classes
            that VisionTextDualEncoder takes.
    """
    problems = [*_encoder_problems("parent", parent), *_encoder_problems("other encoder", other)]
    check_no_problems(problems)
    kinds = _kind(parent), _kind(other)
    if kinds[0] == kinds[1]:
        reason = f"both encoders are of {kinds[0]}s, whose inputs have the same names"
        check_no_problems([FieldProblem("other", reason, _REMEDY)])
    is_image_first = kinds[0] == "image"
    image, text = (parent, other) if is_image_first else (other, parent)
    tree = {
        "model_type": "vision-text-dual-encoder",
        "architectures": ["VisionTextDualEncoderModel"],
        "projection_dim": projection_dim,
        "vision_config": _tree(image),
        "text_config": _tree(text),
    }
    config = parent.family.Config.model_validate_json(json.dumps(tree))
    joined = JoinedModel(Architecture(parent.family, config), is_image_first)
    check_no_problems(_tower_problems(joined, parent, other))
    return joined


def join_modules(
    joined: JoinedModel, parent: nn.Module, other: nn.Module, device: str
) -> nn.Module:
    """Return the model with the weights of both encoders, and projections from torch's generator.

    Weights are float32.
    """
    model = joined.architecture.family.build(joined.architecture.config)
    for name, encoder in zip(joined.modules(), (parent, other), strict=True):
        model.get_submodule(name).load_state_dict(encoder.state_dict())
    return model.float().to(device)


def copy_files(joined: JoinedModel, parent: Path, other: Path, out: Path) -> None:
    """Copy the tokenizer of the encoder of texts, and the processor of the one of images.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    image, text = (parent, other) if joined.is_image_first else (other, parent)
    copy_companions(text, out)
    for file in companion_files(image):
        if any(fnmatchcase(file.name, pattern) for pattern in _PROCESSORS):
            copy_file(file, out / file.name)


def _tree(architecture: Architecture) -> dict[str, Any]:
    """Return config.json of an encoder, whose weights are kept in float32."""
    left_out = {"dtype", "torch_dtype", QUANTIZATION_CONFIG}
    tree = architecture.config.model_dump(mode="json")
    return {name: value for name, value in tree.items() if name not in left_out}


def _kind(architecture: Architecture) -> str | None:
    """Return the kind of an encoder, `image` or `text`; None for others."""
    inputs = {spec.name for spec in architecture.require(Signature).inputs}
    kinds = [kind for kind, name in _INPUTS.items() if name in inputs]
    return kinds[0] if len(kinds) == 1 else None


def _encoder_problems(role: str, architecture: Architecture) -> list[FieldProblem]:
    family = architecture.family.name
    if family != _FAMILY:
        reason = f"the {role} is of the family {family}, which VisionTextDualEncoder does not take"
        return [FieldProblem("other", reason, _REMEDY)]
    if _kind(architecture) is None:
        reason = f"the {role} is no encoder of images alone, or of texts alone"
        return [FieldProblem("other", reason, _REMEDY)]
    embeddings = architecture.capability(Embeddings)
    if embeddings is None or _POOLED not in embeddings.outputs:
        listed = ", ".join(architecture.require(Signature).outputs)
        reason = f"the {role} has no `{_POOLED}`; it has {listed}"
        return [FieldProblem("other", reason, _REMEDY)]
    return []


def _tower_problems(
    joined: JoinedModel, parent: Architecture, other: Architecture
) -> list[FieldProblem]:
    """Return the encoders whose tensors are not those of the tower that transformers builds."""
    from passes.common.unweighted import build_without_values

    model = build_without_values(joined.architecture)[0]
    problems = []
    for name, architecture in zip(joined.modules(), (parent, other), strict=True):
        tower = model.get_submodule(name)
        if _shapes(tower) != _shapes(build_without_values(architecture)[0]):
            reason = f"the class of {name} is {type(tower).__name__} in VisionTextDualEncoder, and "
            reason += f"the encoder is a {_class_name(architecture)}"
            remedy = f"save the encoder as a {type(tower).__name__}"
            problems.append(FieldProblem("other", reason, remedy))
    return problems


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def _class_name(architecture: Architecture) -> str:
    return str(architecture.config.model_dump()["architectures"][0])
