"""Memory of a training, as the plan states it, beside what a training keeps."""

from __future__ import annotations

import pytest
import torch

from compressor.data.contract import DataFacts, InputFacts
from compressor.models.architecture import Architecture
from compressor.models.capabilities.streamed_layers import StreamedLayers
from compressor.models.facts import planned_facts
from passes.common.config import TrainingConfig
from passes.common.estimates import _decoder_bytes, training_estimate, training_memory
from passes.common.losses import hard_cross_entropy
from tests.support.tiny_models import CHECKPOINT

SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
    "max_position_embeddings": 2048,
}
TEXTS = DataFacts(inputs=(InputFacts("input_ids", "int64", (256,)),))


def architecture_of(preset: str = "tiny-llama", **fields: object) -> Architecture:
    return Architecture(CHECKPOINT, CHECKPOINT.presets[preset].model_copy(update=fields))


def test_an_adapter_of_smollm2_takes_what_was_measured() -> None:
    facts = planned_facts(architecture_of(**SMOLLM2))
    training = TrainingConfig(steps=50, batch_size=3)
    estimate = training_estimate(facts, training, data=TEXTS, is_frozen=True)
    # The peak of examples/smollm2/lora.yaml.
    assert estimate.peak_memory_bytes == pytest.approx(2.39e9, rel=0.1)


def test_activations_follow_the_length_of_the_texts() -> None:
    facts = planned_facts(architecture_of(**SMOLLM2))
    unknown, short = training_memory(facts, 2), training_memory(facts, 2, TEXTS)
    double = training_memory(facts, 4, TEXTS)
    assert short > unknown
    assert double - unknown == 2 * (short - unknown)
    assert training_memory(facts, 2, TEXTS, is_frozen=True) < short - 12 * (facts.parameters or 0)


@pytest.mark.parametrize("preset", ["tiny-llama", "tiny-qwen3", "tiny-gemma3"])
def test_the_values_of_a_token_are_about_those_that_training_keeps(preset: str) -> None:
    architecture = architecture_of(preset)
    model = CHECKPOINT.build(architecture.config).train()
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    ids = torch.randint(0, 90, (2, 32))
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = model(input_ids=ids)["logits"]
        hard_cross_entropy({"label": logits}, {"label": ids})
    facts, layers = planned_facts(architecture), architecture.require(StreamedLayers)
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / ids.numel()
    assert _decoder_bytes(facts, layers, is_frozen=False) == pytest.approx(measured, rel=0.6)
