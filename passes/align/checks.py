"""Checks of models and data sets before the training; no torch before a module is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compressor.data.contract import DataFacts
from compressor.evaluation.metrics import IGNORED_LABEL
from compressor.evaluation.outputs import output_of
from compressor.models.architecture import Architecture
from compressor.models.capabilities.embeddings import Embeddings
from compressor.models.capabilities.layer_kinds import LayerKinds
from compressor.models.capabilities.signature import Signature
from compressor.models.facts import ModelFacts
from passes.align.config import AlignConfig
from passes.common.config import training_problems
from passes.common.field_problems import FieldProblem

TOWERS: Mapping[str, str] = {
    "image": "vision_model",
    "text": "text_model",
    "audio": "audio_model",
}
"""Kind of a tower to the name of its module in transformers' classes."""
SCALE = "logit_scale"
DIRECTED_SCALES = ("logit_scale_a", "logit_scale_t")
"""Parameters of ClapModel: the scale of a recording among texts, and of a text among recordings."""
SCALARS = (SCALE, *DIRECTED_SCALES, "logit_bias")
"""Parameters of transformers' classes that only scale the products."""
_FEWEST_PAIRS = 2
_ACCEPTED = {"other": ("torch",), "teacher": ("torch", "packed")}
"""Field to the formats of the artifacts that it may name."""


def model_problems(config: AlignConfig, parent: ModelFacts) -> list[FieldProblem]:
    """Return the fields that do not apply to a model, as far as it is known."""
    architecture = parent.architecture()
    problems = training_problems(config.training, "training", parent)
    embeddings = parent.capability(Embeddings)
    if architecture is None or embeddings is None:
        return problems
    problems += _chunk_problems(config, parent.capability(LayerKinds))
    if embeddings.pair is None:
        return problems + _single_problems(config, embeddings)
    return problems + _pair_problems(config, embeddings.pair, architecture)


def format_problems(formats: Mapping[str, str]) -> list[FieldProblem]:
    """Return the fields that name artifacts without a module of torch.

    Args:
        formats: names of the formats of the input artifacts by role.
    """
    return [
        FieldProblem(
            field,
            f"the artifact has the format {formats[field]}, which is not run in torch",
            "name a step with a model in torch",
        )
        for field, accepted in _ACCEPTED.items()
        if formats.get(field, "torch") not in accepted
    ]


def teacher_problems(model: ModelFacts, teacher: ModelFacts | None) -> list[FieldProblem]:
    """Return why a teacher has no products of the same pairs, as far as both models are known."""
    if teacher is None or teacher.architecture() is None:
        return []
    trained, known = model.capability(Embeddings), teacher.capability(Embeddings)
    if known is None:
        return [FieldProblem("teacher", "the teacher has no embeddings", Embeddings.remedy)]
    if trained is None or (trained.pair is None) == (known.pair is None):
        return []
    reason = "one of the models has one encoder of both texts, and the other has two towers"
    return [FieldProblem("teacher", reason, "name a teacher of the same kind")]


def trained_output(config: AlignConfig, architecture: Architecture) -> str:
    """Return the output of an encoder of one kind that is trained."""
    return best_output(architecture) if config.output is None else config.output


def best_output(architecture: Architecture) -> str:
    """Return the embedding that metrics of retrieval score."""
    return output_of("recall@1", architecture.require(Signature).outputs)


def _chunk_problems(config: AlignConfig, layers: LayerKinds | None) -> list[FieldProblem]:
    if config.chunk_size is None or config.training.batch_norm == "freeze":
        return []
    if layers is None or not layers.batch_norms:
        return []
    return [
        FieldProblem(
            "chunk_size",
            "batch normalizations would use the statistics of chunks",
            "set `training.batch_norm: freeze`, or leave `chunk_size` out",
        )
    ]


def _single_problems(config: AlignConfig, embeddings: Embeddings) -> list[FieldProblem]:
    problems = []
    if config.freeze:
        problems.append(
            FieldProblem("freeze", "the model has one encoder for both texts", "leave it out")
        )
    if config.output is not None and config.output not in embeddings.outputs:
        problems.append(
            FieldProblem(
                "output",
                f"{config.output!r} is no embedding of the model",
                f"name one of {', '.join(embeddings.outputs)}",
            )
        )
    return problems


def _pair_problems(
    config: AlignConfig, pair: tuple[str, str], architecture: Architecture
) -> list[FieldProblem]:
    problems = []
    outputs = " and ".join(pair)
    if config.output is not None:
        problems.append(
            FieldProblem("output", f"the model has a pair of outputs, {outputs}", "leave it out")
        )
    if config.similarity == "dot":
        problems.append(
            FieldProblem(
                "similarity", f"the model scales {outputs} to length 1 itself", "leave it out"
            )
        )
    return problems + _freeze_problems(config, pair, architecture)


def _freeze_problems(
    config: AlignConfig, pair: tuple[str, str], architecture: Architecture
) -> list[FieldProblem]:
    """Return towers that the model lacks; or the field, if nothing is left to train."""
    if not config.freeze or architecture.family.training_problem(architecture.config) is not None:
        return []  # a model that cannot be trained cannot be built
    from passes.common.unweighted import build_without_values

    module = build_without_values(architecture)[0]
    kinds = [name.removesuffix("_embeds") for name in pair]
    found = [kind for kind in kinds if kind in TOWERS and hasattr(module, TOWERS[kind])]
    if unknown := [kind for kind in config.freeze if kind not in found]:
        listed = ", ".join(found)
        remedy = f"name towers among {listed}" if listed else "leave `freeze` out"
        return [FieldProblem("freeze", f"the model has no tower {', '.join(unknown)}", remedy)]
    frozen = tuple(f"{TOWERS[kind]}." for kind in config.freeze)
    rest = [name for name, _ in module.named_parameters() if not name.startswith(frozen)]
    if [name for name in rest if name not in SCALARS]:
        return []
    return [
        FieldProblem(
            "freeze",
            "nothing is left to train: the model has no projections behind its towers",
            "freeze one tower",
        )
    ]


def data_problems(
    config: AlignConfig, parent: ModelFacts, data: Mapping[str, DataFacts]
) -> list[FieldProblem]:
    """Return the data sets that are known to have no pairs of the model's kind, or too few."""
    embeddings = parent.capability(Embeddings)
    if embeddings is None:
        return []
    problems = []
    for field, name in (("train", config.train), ("validation", config.validation)):
        labels = None if name is None else data.get(name, DataFacts()).retrieval_labels
        if labels is not None and (
            problem := pair_problem(labels, is_shared=embeddings.pair is None)
        ):
            problems.append(FieldProblem(field, f"data set {name!r} {problem}", PAIRS_REMEDY))
    return problems


NO_IMAGES = "has labels that are not positions of samples with the same image"
PAIRS_REMEDY = (
    "name a data set of `text-pairs` for an encoder of texts, or of `image-captions` for "
    "a model of images and texts"
)


def pair_problem(labels: Sequence[int], *, is_shared: bool) -> str | None:
    """Return why labels are not those of pairs; None if they are.

    Args:
        labels: labels of the samples in their order.
        is_shared: True for texts and passages of one encoder, whose labels are positions of
            passages; False for samples that are pairs.
    """
    if not is_shared:
        if any(not 0 <= label <= position for position, label in enumerate(labels)):
            return NO_IMAGES
        count = len(set(labels))
    else:
        passages = {n for n, label in enumerate(labels) if label == IGNORED_LABEL}
        queries = [label for label in labels if label != IGNORED_LABEL]
        if not queries or not passages.issuperset(queries):
            return "does not pair queries with passages: its labels are not positions of passages"
        count = len(set(queries))
    if count < _FEWEST_PAIRS:
        return f"has {count} pair, which leaves no negatives"
    return None
