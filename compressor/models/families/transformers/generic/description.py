"""Description of a class of transformers, from the class itself on the device ``meta``.

Classes with a row in the tables are described without torch; every other class is built without
weights, and run on meta tensors where that is possible.
"""

from __future__ import annotations

import inspect
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from compressor.models.capabilities.flop_counting import count_flops
from compressor.models.capabilities.layer_kinds import LayerKinds
from compressor.models.capabilities.signature import InputSpec, Signature
from compressor.models.families.transformers.generic.inputs import (
    class_inputs,
    has_unknown_main_input,
    inputs_error,
)
from compressor.models.families.transformers.generic.sample import sample_batch
from compressor.models.families.transformers.generic.tasks import Task, task_of
from compressor.models.families.transformers.modules import build_module, build_without_data

_MOST_PARAMETERS_TO_RUN = 20_000_000
"""Classes that do not run on meta tensors are run with random weights up to this size."""
_SAMPLE_TOKENS = 128
"""Tokens of the text whose MACs are those of one sample of an encoder."""


@dataclass(frozen=True, slots=True)
class ClassDescription:
    """A class of transformers with a config, as far as it is known without weights."""

    task: Task
    signature: Signature
    shapes: Mapping[str, tuple[int, ...]]
    """Shape of each tensor of the state dict."""
    parameters: Mapping[str, int]
    """Parameters by part of the model, tied weights counted once."""
    macs: int
    """Multiply-accumulates of one sample, of texts with 128 tokens, or of one token of a language
    model; 0 if unknown."""
    layer_kinds: LayerKinds


def describe(tree: Mapping[str, Any]) -> ClassDescription:
    """Return the description of the class that config.json names.

    Raises:
        ModelError: transformers has no such class, or rejects the config.
    """
    return _describe(json.dumps(dict(tree), sort_keys=True))


@lru_cache(maxsize=32)
def _describe(content: str) -> ClassDescription:
    tree = json.loads(content)
    module = build_without_data(tree)
    task = task_of(type(module).__name__, module.main_input_name)
    inputs, results, macs = _run(module, tree, task)
    return ClassDescription(
        task=task,
        signature=Signature(
            inputs,
            _outputs(module, task, results),
            unit="sample" if task.encodes else "token",
            classes=_number_of_classes(module, task),
        ),
        shapes={name: tuple(value.shape) for name, value in module.state_dict().items()},
        parameters=_parameters(module),
        macs=macs,
        layer_kinds=_layer_kinds(module),
    )


def _run(
    module: PreTrainedModel, tree: Mapping[str, Any], task: Task
) -> tuple[tuple[InputSpec, ...], Mapping[str, Any], int]:
    """Return the first inputs that the class runs on, the result of one sample, and its MACs.

    A large class that does not run on meta tensors is not run otherwise: the first inputs are
    returned, with nothing and 0.

    Raises:
        ModelError: the class does not run on any inputs that are known here.
    """
    candidates = list(class_inputs(module, task))
    tokens = _SAMPLE_TOKENS if task.encodes else 1
    batches = [sample_batch(inputs, batch=1, tokens=tokens) for inputs in candidates]
    size = sum(parameter.numel() for parameter in module.parameters())
    outcome = _first_that_runs(module, batches, "meta")
    is_small = size <= _MOST_PARAMETERS_TO_RUN
    if isinstance(outcome, Exception) and is_small:
        with torch.random.fork_rng(devices=[]):
            outcome = _first_that_runs(build_module(tree).eval(), batches, "cpu")
    elif (
        isinstance(outcome, Exception)
        and "attention_mask" in inspect.signature(module.forward).parameters
    ):
        # Without a mask, transformers looks for packed sequences in the positions.
        mask = torch.ones(1, tokens, dtype=torch.int64)
        masked = [{"attention_mask": mask, **batch} for batch in batches]
        outcome = _first_that_runs(module, masked, "meta")
    if isinstance(outcome, _Run):
        return candidates[outcome.index], outcome.results, outcome.macs
    if is_small or has_unknown_main_input(module):
        raise inputs_error(module, candidates[0], outcome)
    return candidates[0], {}, 0


@dataclass(frozen=True, slots=True)
class _Run:
    """Run of a class on one of several batches."""

    index: int
    results: Mapping[str, Any]
    macs: int


def _first_that_runs(
    module: nn.Module, batches: Sequence[Mapping[str, Tensor]], device: str
) -> _Run | Exception:
    """Return the run of the first batch that the class accepts; without one, the first error."""
    errors = []
    for index, batch in enumerate(batches):
        inputs = {name: value.to(device) for name, value in batch.items()}
        # The default products of experts read values, and are not counted.
        cast("PreTrainedModel", module).set_experts_implementation("batched_mm")
        try:
            with count_flops(module) as counter:
                results = module(**inputs)
        except Exception as error:  # noqa: BLE001  it reads values, or needs other inputs
            errors.append(error)
        else:
            return _Run(index, dict(results), counter.get_total_flops() // 2)
    return errors[0]


def _outputs(module: PreTrainedModel, task: Task, results: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the outputs of the task that the class returns.

    If it returns none of them, all its float tensors are outputs. If it could not be run, the
    outputs of the task among the fields of its result; if that is unknown, the first of the task.
    """
    tensors = [
        name
        for name, value in results.items()
        if isinstance(value, Tensor) and value.is_floating_point()
    ]
    if not tensors:
        stated = _stated_fields(module)
        return tuple(name for name in task.outputs if name in stated) or task.outputs[:1]
    return tuple(name for name in task.outputs if name in tensors) or tuple(tensors)


def _stated_fields(module: PreTrainedModel) -> set[str]:
    """Return the fields of the records of results that ``forward`` creates."""
    forward: Any = inspect.unwrap(type(module).forward)
    records = [forward.__globals__.get(name) for name in forward.__code__.co_names]
    return {
        field.name
        for record in records
        if isinstance(record, type) and issubclass(record, ModelOutput) and is_dataclass(record)
        for field in fields(record)
    }


def _number_of_classes(module: PreTrainedModel, task: Task) -> int | None:
    if task.classes is None:
        return None
    config: Any = module.config
    if task.classes == "num_labels":
        return int(config.num_labels)
    text = config.get_text_config(decoder=True)
    return getattr(text, "decoder_vocab_size", None) or getattr(text, task.classes, None)


def _parameters(module: PreTrainedModel) -> dict[str, int]:
    prefix = f"{module.base_model_prefix}."
    counts: Counter[str] = Counter()
    for name, parameter in module.named_parameters():
        counts[name.removeprefix(prefix).partition(".")[0]] += parameter.numel()
    return dict(counts)


def _layer_kinds(module: nn.Module) -> LayerKinds:
    uses = Counter(
        id(parameter)
        for submodule in module.modules()
        for parameter in submodule.parameters(recurse=False)
    )
    modules = list(module.modules())
    return LayerKinds(
        batch_norms=any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in modules),
        embedding_tables=any(
            isinstance(layer, nn.Embedding) and uses[id(layer.weight)] == 1 for layer in modules
        ),
    )
