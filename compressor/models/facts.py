"""Facts about a model that are known without loading its weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from compressor.config.discovery import FAMILIES, load
from compressor.models.architecture import Architecture
from compressor.models.attention_patterns.record import read_attention_pattern
from compressor.models.capabilities.capability import C
from compressor.models.capabilities.signature import InputSpec, Signature
from compressor.models.checkpoint.companions import model_files
from compressor.models.checkpoint.description import read_description
from compressor.models.checkpoint.layout import read_config
from compressor.models.contract import Family
from compressor.models.graph_contents import GraphContents
from compressor.models.quantized.weight_grid import WeightGrid, is_packed

_FLOAT_BYTES = 4
Integers = frozenset[Literal["int8", "int4", "unsigned"]]
"""Types of the integers of a model; `unsigned` for any that have zero-points."""


@dataclass(frozen=True, slots=True)
class PlannedGraph:
    """An ONNX graph that a step will write."""

    opset: int
    integers: Integers | None = None
    """None if they are not known."""
    dynamic: tuple[str, ...] | None = None
    """Names of the input dimensions that vary; None for all."""
    is_standard: bool = True
    """False if it has operators of ONNX Runtime's own."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Facts about a model, planned or on disk; None where a value cannot be determined."""

    family: str | None = None
    config: Mapping[str, Any] | None = None
    parameters: int | None = None
    """Tied weights counted once."""
    macs: int | None = None
    """Multiply-accumulates of one forward pass of one sample, or of one token."""
    size_bytes: int | None = None
    """All files of the model's folder."""
    sizes_known: bool = True
    """False if the sizes in ``config`` are those of the parent, of which a run cuts some."""
    candidate_grids: tuple[WeightGrid, ...] = ()
    """Grids from which a run chooses one for each packed layer, where ``config`` names none."""
    integers: Integers | None = frozenset()
    """Integers that a graph of the model has; None if they are not known."""
    gguf_scales: bool | None = None
    """True if the groups of packed layers fit GGUF's blocks (`gguf_scales` of `awq`), False if no
    heed was paid to that; None for other models, and if it is not known."""
    attention_pattern: bool = False
    """True if some heads attend to a window alone, as ``attention_pattern.json`` states."""
    activation_bits: int | None = None
    """Bits of the activations of quantized layers; None for floats, or if not known."""
    tokenizer_folder: Path | None = field(default=None, compare=False)
    """Checkpoint whose tokenizer files the model has, or will have; None if not known."""
    graph: PlannedGraph | None = None
    """The graph, of a planned model in ONNX."""
    graph_inputs: Callable[[], tuple[InputSpec, ...] | None] | None = field(
        default=None, compare=False
    )
    """Reads the inputs that an existing graph requires; None for other models."""
    graph_signature: Callable[[], Signature | None] | None = field(default=None, compare=False)
    """Reads inputs and outputs of an existing graph that is no decoder; None for other models."""
    graph_contents: Callable[[], GraphContents] | None = field(default=None, compare=False)
    """Reads what an existing graph holds, without its weights; None for other models."""

    def architecture(self) -> Architecture | None:
        """Return the architecture; None if the family or its config is unknown.

        Raises:
            UsageError: the family is not installed.
        """
        if self.family is None or self.config is None:
            return None
        family: Family[Any] = load(FAMILIES, self.family)
        config = family.Config.model_validate_json(json.dumps(dict(self.config)))
        return Architecture(family, config)

    def capability(self, kind: type[C]) -> C | None:
        """Return a capability; None if the model lacks it, or its architecture is unknown.

        Raises:
            UsageError: the family is not installed.
        """
        architecture = self.architecture()
        return None if architecture is None else architecture.capability(kind)

    def signature(self) -> Signature | None:
        """Return inputs and outputs by the architecture, or else by the graph; None if unknown."""
        signature = self.capability(Signature)
        if signature is None and self.graph_signature is not None:
            return self.graph_signature()
        return signature


def planned_facts(architecture: Architecture) -> ModelFacts:
    """Return the facts of a model that would be saved in float32, from the family's arithmetic."""
    parameters = sum(architecture.family.parameters(architecture.config).values())
    return _facts(architecture, _FLOAT_BYTES * parameters)


def facts_of(folder: Path) -> ModelFacts:
    """Return the facts of a model folder, from config.json and the family's arithmetic.

    Neither torch nor the weights are loaded.

    Raises:
        ModelError: as ``read_description``.
    """
    description = read_description(folder)
    files = model_files(folder, description.weights)
    facts = _facts(description, sum(file.stat().st_size for file in files))
    # Which integers a graph gets depends on the runtime that a quantized model is laid out for.
    is_float = not description.is_quantized and not is_packed(read_config(folder))
    quantization = description.quantization()
    bits = None if quantization is None else quantization.activation_bits()
    return replace(
        facts,
        integers=frozenset() if is_float else None,
        activation_bits=bits,
        tokenizer_folder=folder,
        attention_pattern=read_attention_pattern(folder) is not None,
    )


def _facts(architecture: Architecture, bytes_on_disk: int) -> ModelFacts:
    family, config = architecture.family, architecture.config
    return ModelFacts(
        family=family.name,
        config=config.model_dump(mode="json"),
        parameters=sum(family.parameters(config).values()),
        macs=family.macs(config) or None,
        size_bytes=bytes_on_disk,
    )
