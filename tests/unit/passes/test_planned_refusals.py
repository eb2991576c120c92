"""What a step refuses of a stored checkpoint, its estimate refuses of the planned one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compressor.engine.contract import Pass, PlanContext
from compressor.errors import RequirementError
from compressor.models.facts import facts_of
from passes.awq.step import Awq
from passes.export_onnx.step import ExportOnnx
from passes.prune.step import Prune
from tests.support.awq import COMPRESSED_TENSORS, pass_context
from tests.support.decoders import FIELDS, pack_decoder, save_decoder

PORTABLE = {**FIELDS, "decoder": {"target": "portable"}}
MAGNITUDE = {"importance": "magnitude", "repair": False}
ODD = {"hidden_size": 72, "num_attention_heads": 6, "head_dim": 16}


@pytest.mark.parametrize(
    ("step", "fields", "preset", "changes"),
    [
        (Awq(), {"group_size": 128}, "tiny-llama", {}),
        (Awq(), {**COMPRESSED_TENSORS, "lm_head": {"group_size": 48}}, "tiny-mistral", {}),
        (Awq(), {**COMPRESSED_TENSORS, "effective_bits": 2.1}, "tiny-llama", {}),
        (Prune(), {**MAGNITUDE, "target": {"dimensions": {"ffn": 97}}}, "tiny-llama", {}),
        (ExportOnnx(), PORTABLE, "tiny-llama", {"hidden_act": "mish"}),
        (ExportOnnx(), FIELDS, "tiny-llama", {"head_dim": 24}),
        (ExportOnnx(), PORTABLE, "tiny-gemma3", {"use_bidirectional_attention": True}),
        (ExportOnnx(), {**FIELDS, "decoder": {"int8_embeddings": True}}, "tiny-llama", ODD),
        (ExportOnnx(), {**FIELDS, "decoder": {"accuracy_level": 4}}, "tiny-llama", {}),
        (ExportOnnx(), {**FIELDS, "decoder": {"context_length": 513}}, "tiny-llama", {}),
    ],
)
def test_a_checkpoint_that_a_step_refuses_is_refused_by_its_estimate(
    step: Pass[Any], fields: dict[str, Any], preset: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    assert_refused_alike(step, fields, save_decoder(tmp_path / "parent", preset, changes), tmp_path)


@pytest.mark.parametrize(
    ("fields", "packing"),
    [
        (FIELDS, {"format": "compressed-tensors", "bits": 3}),
        (PORTABLE, {"format": "compressed-tensors", "bits": 2, "symmetric": True}),
        (FIELDS, {"group_size": 8}),
    ],
)
def test_a_packed_checkpoint_that_export_refuses_is_refused_by_its_estimate(
    fields: dict[str, Any], packing: dict[str, Any], tmp_path: Path
) -> None:
    parent = pack_decoder(save_decoder(tmp_path / "parent", "tiny-llama"), tmp_path, **packing)
    assert_refused_alike(ExportOnnx(), fields, parent, tmp_path)


def assert_refused_alike(
    step: Pass[Any], fields: dict[str, Any], parent: Any, folder: Path
) -> None:
    config = step.Config.model_validate(fields)
    with pytest.raises(RequirementError) as required:
        step.requires(config, parent, pass_context(folder / "context"))
    with pytest.raises(RequirementError) as planned:
        step.estimate(config, facts_of(parent.model), PlanContext({}))
    assert planned.value.what == required.value.what
    assert planned.value.remedy == required.value.remedy
