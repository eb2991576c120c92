"""Packed language models in MNN: the integers of `awq`, and the logits and tokens of torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressor.data.contract import DataFacts, InputFacts
from compressor.engine.contract import PassContext, PlanContext
from compressor.errors import ParityError, RequirementError
from compressor.models.facts import facts_of
from compressor.runtimes.formats import open_session, recognize
from passes.export_mnn.config import ExportMnnConfig
from passes.export_mnn.step import ExportMnn
from tests.support.awq import pass_context
from tests.support.decoders import pack_decoder
from tests.support.gguf_checkpoints import save_gguf_parent

pytest.importorskip("MNN")

TOKENS = np.random.default_rng(0).integers(3, 380, (4, 24))
SYMMETRIC = {"format": "compressed-tensors", "symmetric": True, "dtype": "float16"}


def export(parent: Any, out: Path, **fields: Any) -> dict[str, Any]:
    """Run the pass with all its checks; return its summary."""
    out.mkdir(parents=True)
    context: PassContext = pass_context(out.with_name("context"))
    config, step = (
        ExportMnnConfig.model_validate({"parity": {"data": "text"}, **fields}),
        ExportMnn(),
    )
    step.requires(config, parent, context)
    return dict(step.run(config, parent, out, context).summary)


@pytest.mark.parametrize(
    ("name", "packing"),
    [
        ("llama", {}),
        ("llama, untied with biases", SYMMETRIC),
        ("qwen2", {"format": "compressed-tensors", "bits": 8}),
        ("qwen3", {"lm_head": {"bits": 8, "group_size": 32}, "format": "compressed-tensors"}),
    ],
)
def test_mnn_computes_the_logits_of_packed_checkpoints(
    name: str, packing: dict[str, Any], tmp_path: Path
) -> None:
    source = save_gguf_parent(tmp_path / "parent", name)
    parent = pack_decoder(source, tmp_path / "awq", **packing)
    summary = export(parent, tmp_path / "out")
    assert summary["against_parent"]["logits"]["relative_error"] < 2e-3
    assert recognize(tmp_path / "out").format.name == "mnn"


def test_tables_in_8_bits_are_smaller_and_their_error_is_reported(tmp_path: Path) -> None:
    parent = pack_decoder(save_gguf_parent(tmp_path / "parent"), tmp_path / "awq")
    wide, small = export(parent, tmp_path / "a"), export(parent, tmp_path / "b", tables="int8")
    assert small["bytes"] < wide["bytes"]
    assert 1e-3 < small["rounded_tables"]["model.embed_tokens"] < 1e-2


def test_equal_checkpoints_give_equal_bytes(tmp_path: Path) -> None:
    parent = pack_decoder(save_gguf_parent(tmp_path / "parent"), tmp_path / "awq")
    for name in ("a", "b"):
        export(parent, tmp_path / name)
    files = [{f.name: f.read_bytes() for f in (tmp_path / name).iterdir()} for name in ("a", "b")]
    assert files[0] == files[1]


def test_sessions_leave_masked_tokens_out(tmp_path: Path) -> None:
    parent = pack_decoder(save_gguf_parent(tmp_path / "parent"), tmp_path / "awq")
    export(parent, tmp_path / "out")
    mask = np.ones_like(TOKENS)
    mask[0, :5] = mask[1, 20:] = 0
    with open_session("mnn", tmp_path / "out", threads=1) as session:
        whole = session.run({"input_ids": TOKENS})["logits"]
        partial = session.run({"input_ids": TOKENS, "attention_mask": mask})["logits"]
        alone = session.run({"input_ids": TOKENS[:1, 5:]})["logits"]
    np.testing.assert_array_equal(partial[2:], whole[2:])
    np.testing.assert_array_equal(partial[0, 5:], alone[0])
    assert not partial[0, :5].any()


@pytest.mark.parametrize(
    ("name", "fields", "problem"),
    [
        ("gemma3", {}, "Gemma3ForCausalLM is no language model that `export-mnn` writes"),
        ("llama with yarn", {}, "rotary embeddings of type yarn"),
        ("llama", {"bits": 3, "format": "compressed-tensors"}, r"down_proj: 3 bits"),
    ],
)
def test_a_plan_refuses_what_the_folder_cannot_hold(
    name: str, fields: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    from passes.awq.config import AwqConfig
    from passes.awq.step import Awq

    facts = facts_of(save_gguf_parent(tmp_path / "parent", name).model)
    context = PlanContext({"parent": facts})
    tree = {"calibration": {"data": "text"}, "group_size": 32, **fields}
    planned = Awq().estimate(AwqConfig.model_validate(tree), facts, context).model
    with pytest.raises(RequirementError, match=problem):
        ExportMnn().estimate(ExportMnnConfig(), planned, context)


def test_the_memory_of_a_plan_grows_with_the_compared_tokens(tmp_path: Path) -> None:
    facts = facts_of(pack_decoder(save_gguf_parent(tmp_path / "parent"), tmp_path / "awq").model)

    def memory(tokens: int) -> int:
        inputs = (InputFacts("input_ids", "int64", (tokens,)),)
        context = PlanContext({"parent": facts}, {"test": DataFacts(inputs)})
        return ExportMnn().estimate(ExportMnnConfig(), facts, context).peak_memory_bytes or 0

    assert facts.config is not None
    logits = 4 * 100 * facts.config["vocab_size"]  # of a batch of four samples
    assert memory(200) - memory(100) >= 2 * 8 * logits  # float64 of both models


def test_fields_of_the_other_kind_of_parent_are_refused(tmp_path: Path) -> None:
    facts = facts_of(pack_decoder(save_gguf_parent(tmp_path / "parent"), tmp_path / "awq").model)
    with pytest.raises(RequirementError, match="packed weights keep their integers"):
        ExportMnn().estimate(ExportMnnConfig(weights="int8"), facts, PlanContext({}))


def test_a_tokenizer_that_mnn_splits_otherwise_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from passes.export_mnn import tokenizer_file

    parent = pack_decoder(save_gguf_parent(tmp_path / "parent"), tmp_path / "awq")
    monkeypatch.setattr(tokenizer_file, "_pre_tokenizer", lambda _: b"\0")
    with pytest.raises(ParityError, match=r"MNN splits .Hello there.* into the tokens \["):
        export(parent, tmp_path / "out")
