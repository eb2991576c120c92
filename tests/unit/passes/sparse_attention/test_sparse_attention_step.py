"""The `sparse-attention` pass on tiny decoders: losses, gates, budgets, refusals and resuming."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from calibration.sources.arrays import ArrayDataset
from compressor.data.contract import DataFacts, InputFacts
from compressor.engine.contract import PassContext, PassOutput, PlanContext
from compressor.errors import DataError, GateError, RequirementError
from compressor.models.attention_patterns.attention import select_keys
from compressor.models.attention_patterns.masks import LocalSelection
from compressor.models.attention_patterns.record import (
    ATTENTION_PATTERN,
    AttentionPattern,
    read_attention_pattern,
    write_attention_pattern,
)
from compressor.models.capabilities.attention_heads import AttentionHeads
from compressor.models.checkpoint.description import read_description
from compressor.models.checkpoint.loading import load_module
from compressor.models.facts import facts_of
from passes.sparse_attention.config import SparseAttentionConfig
from passes.sparse_attention.losses import HeadMeasurement, measure_texts
from passes.sparse_attention.step import SparseAttention
from passes.sparse_attention.verification import position_ranges, with_repetition
from tests.support.decoders import pack_decoder, save_decoder
from tests.support.training import Killed

LENGTH = 96
TEXTS = np.random.default_rng(0).integers(3, 490, (8, LENGTH))
FIELDS: dict[str, Any] = {
    "context_length": LENGTH,
    "sinks": 2,
    "windows": [8],
    "calibration": {"num_samples": 2},
    "verification": {"num_samples": 2, "copied_tokens": 20},
    "max_kl": 50.0,
    "max_copy_loss": 50.0,
}


def _config(**fields: Any) -> SparseAttentionConfig:
    fields = {"budget": {"kv_memory": 0.6}, **FIELDS, **fields}
    if "kl" in fields["budget"]:
        del fields["max_kl"]
    return SparseAttentionConfig.model_validate(fields, strict=False)


def _context(work: Path, **changes: Any) -> PassContext:
    work.mkdir(parents=True, exist_ok=True)
    sets = {
        "calibration": ArrayDataset({"input_ids": TEXTS[:4]}, ("input_ids",)),
        "validation": ArrayDataset({"input_ids": TEXTS[4:]}, ("input_ids",)),
    }
    context = PassContext(
        artifacts={},
        data=sets.__getitem__,
        work=work,
        seed=0,
        threads=1,
        device="cpu",
        artifact_id="cd" * 32,
        progress=lambda *_: None,
        note=lambda _: None,
    )
    return replace(context, **changes)


def _run(
    parent: SimpleNamespace, folder: Path, config: SparseAttentionConfig, **changes: Any
) -> tuple[Path, PassOutput]:
    out = folder / "out"
    out.mkdir(parents=True, exist_ok=True)
    step, context = SparseAttention(), _context(folder / "work", **changes)
    step.requires(config, parent, context)
    output = step.run(config, parent, out, context)
    step.ensures(config, parent, out, context)
    return out, output


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    return save_decoder(tmp_path_factory.mktemp("llama") / "model", "tiny-llama")


@pytest.mark.parametrize("preset", ["tiny-llama", "tiny-glm4v", "tiny-glm4", "tiny-gemma3"])
def test_a_head_loses_what_the_residual_stream_loses_if_it_alone_is_local(
    tmp_path: Path, preset: str
) -> None:
    """Each head is made local in turn, and what its layer adds is compared with full attention."""
    parent = save_decoder(tmp_path / "model", preset)
    description = read_description(parent.model)
    heads, module = description.require(AttentionHeads), load_module(parent.model)
    windows, tokens = (8, 20), torch.from_numpy(TEXTS[:1])
    measurement = HeadMeasurement(module, heads, 2, windows)
    [sums] = measure_texts(measurement, module, iter([({"input_ids": tokens}, 0)]))
    measured = sums.relative()
    assert {*measured.sum((1, 2)).nonzero().flatten().tolist()} == {*heads.full_layers}
    for number in heads.full_layers:
        added, stream = _added(module, heads, number, tokens)
        for index, window in enumerate(windows):
            for head in range(heads.key_heads):
                attention = module.get_submodule(heads.names[number])
                selection = LocalSelection.of_key_heads(
                    [head], heads.key_heads, heads.heads_per_key, 2, window
                )
                select_keys(attention, selection)
                change = (_added(module, heads, number, tokens)[0] - added)[10:].double()
                select_keys(attention, None)
                expected = change.square().sum() / stream[10:].double().square().sum()
                torch.testing.assert_close(
                    measured[number, index, head], expected, rtol=2e-3, atol=1e-9
                )


def test_the_repetition_at_the_end_of_a_text_has_the_weight_of_the_text(
    llama: SimpleNamespace,
) -> None:
    heads = read_description(llama.model).require(AttentionHeads)
    tokens = {"input_ids": torch.from_numpy(TEXTS[:1])}
    losses = []
    for repeated in (0, LENGTH, 30):
        module = load_module(llama.model)
        measurement = HeadMeasurement(module, heads, 2, (8,))
        [sums] = measure_texts(measurement, module, iter([(tokens, repeated)]))
        losses.append(sums)
    whole, repetition, both = losses
    torch.testing.assert_close(whole.relative(), repetition.relative())
    parts = both.errors_PLWG / both.streams_PL[..., None, None]
    torch.testing.assert_close(both.relative(), (parts[0] + parts[1]) / 2)
    torch.testing.assert_close(both.errors_PLWG.sum(0), whole.errors_PLWG[0])


def _added(
    module: Any, heads: AttentionHeads, number: int, tokens: Tensor
) -> tuple[Tensor, Tensor]:
    """Return what the attention of a layer adds to the residual stream, and the stream."""
    seen: dict[str, Tensor] = {}
    layer = module.get_submodule(f"{heads.layers_name}.{number}")
    added = layer.self_attn.o_proj if not heads.output_norm else getattr(layer, heads.output_norm)
    handles = [
        added.register_forward_hook(lambda *call: seen.update(added=call[2][0])),
        layer.register_forward_pre_hook(
            lambda _, arguments, options: seen.update(
                stream=(arguments[0] if arguments else options["hidden_states"])[0]
            ),
            with_kwargs=True,
        ),
    ]
    with torch.inference_mode():
        module(input_ids=tokens)
    for handle in handles:
        handle.remove()
    return seen["added"], seen["stream"]


def test_the_model_gets_a_pattern_within_the_budget_and_a_report(
    llama: SimpleNamespace, tmp_path: Path
) -> None:
    compare = [
        {"all_local": True},
        {"block_global": {"block": 4, "stride": 16, "sinks": 2, "preceding": True}},
        {"dynamic": {"top_k": 8, "window": 4, "grow_from": 48}},
    ]
    out, output = _run(llama, tmp_path, _config(compare=compare))
    pattern, summary = read_attention_pattern(out), output.summary
    assert pattern is not None
    heads = read_description(out).require(AttentionHeads)
    rows = pattern.cached_rows(heads, LENGTH)
    assert rows / (6 * LENGTH) == pytest.approx(summary["kv_memory"], abs=1e-4)
    assert 0.4 < summary["kv_memory"] <= 0.6
    assert summary["kv_bytes_before"] == 6 * LENGTH * 2 * heads.head_width * 2
    assert [row["pattern"] for row in summary["patterns"]] == [
        "chosen",
        "as many heads at random",
        "sinks + window in all heads",
        "block_global {block: 4, stride: 16, sinks: 2, preceding: True}",
        "dynamic {top_k: 8, window: 4, grow_from: 48}",
    ]
    chosen, control, everything = summary["patterns"][:3]
    assert chosen["kv_memory"] == control["kv_memory"]
    assert 0 < chosen["kl 10–75"] < everything["kl 10–75"]
    marks = "".join(row["heads"] for row in summary["map"])
    assert marks.count("○") == summary["local_heads"] == pattern.local_heads
    assert len(summary["losses"]) == heads.layers
    with torch.inference_mode():
        tokens = torch.from_numpy(TEXTS[:1])
        full, local = (
            load_module(folder)(input_ids=tokens).logits for folder in (llama.model, out)
        )
    assert not torch.allclose(full[:, -1], local[:, -1])


def test_a_larger_divergence_allows_more_local_heads(
    llama: SimpleNamespace, tmp_path: Path
) -> None:
    counts = []
    for number, limit in enumerate((0.02, 1.0, 1000.0)):
        config = _config(budget={"kl": limit})
        out, output = _run(llama, tmp_path / str(number), config)
        gates = {row["gate"]: row for row in output.summary["gates"]}
        assert gates["kl"]["value"] <= limit
        counts.append(output.summary["local_heads"])
    assert counts == sorted(counts)
    assert counts[-1] == 6
    assert (out / "model.safetensors").read_bytes() == (
        llama.model / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_kl": 1e-9}, "the KL divergence is .* > 1e-09"),
        ({"max_copy_loss": 1e-9}, "the copy loss is .* > 1e-09"),
        ({"budget": {"kl": 1e-12}}, "with one local head, the KL divergence is"),
    ],
)
def test_a_pattern_that_fails_a_gate_is_not_written(
    llama: SimpleNamespace, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(GateError, match=message):
        _run(llama, tmp_path, _config(**fields))
    assert not (tmp_path / "out" / ATTENTION_PATTERN).exists()


def test_a_packed_model_stays_packed_and_a_second_pattern_is_refused(
    llama: SimpleNamespace, tmp_path: Path
) -> None:
    packed = pack_decoder(llama, tmp_path)
    out, _ = _run(packed, tmp_path / "sparse", _config())
    names = {file.name for file in out.iterdir()} - {ATTENTION_PATTERN}
    for name in names:
        assert (out / name).read_bytes() == (packed.model / name).read_bytes()
    assert "quantization_config" in (out / "config.json").read_text()
    with pytest.raises(RequirementError, match="has an attention pattern already"):
        SparseAttention().estimate(_config(), facts_of(out), _planned())


def test_a_killed_run_resumes_after_the_last_text_and_ends_in_the_same_pattern(
    llama: SimpleNamespace, tmp_path: Path
) -> None:
    _, expected = _run(llama, tmp_path / "whole", _config())

    def kill(label: str, done: int, _: int, __: object) -> None:
        if label == "calibration" and done == 1:
            raise Killed

    with pytest.raises(Killed):
        _run(llama, tmp_path / "killed", _config(), progress=kill)
    labels: list[tuple[str, int]] = []
    _, output = _run(
        llama,
        tmp_path / "killed",
        _config(),
        progress=lambda label, done, *_: labels.append((label, done)),
    )
    assert ("calibration", 1) not in labels
    assert ("calibration", 2) in labels
    assert output.summary == expected.summary


def _planned(length: int | None = LENGTH, **more: str) -> PlanContext:
    inputs = [InputFacts("input_ids", "int64", (length,))]
    inputs += [InputFacts(name, dtype, (3,)) for name, dtype in more.items()]
    return PlanContext(
        {}, {name: DataFacts(tuple(inputs)) for name in ("calibration", "validation")}
    )


@pytest.mark.parametrize(
    ("fields", "planned", "message"),
    [
        ({"context_length": 1024}, _planned(1024), "`context_length`: 1024 tokens, and the model"),
        ({}, _planned(64), "`calibration.data`: its texts have 64 tokens"),
        ({"budget": {"kv_memory": 0.05}}, _planned(), "`budget.kv_memory`: 0.05 is below sinks"),
        ({}, _planned(pixel_values="float32"), "`verification.data`: it has pixel_values beside"),
    ],
)
def test_what_does_not_fit_is_refused_while_planning_by_the_name_of_the_field(
    llama: SimpleNamespace, fields: dict[str, Any], planned: PlanContext, message: str
) -> None:
    with pytest.raises(RequirementError) as caught:
        SparseAttention().estimate(_config(**fields), facts_of(llama.model), planned)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"budget": {"kl": 0.1, "kv_memory": 0.5}}, "set `kv_memory` or `kl`, and not both"),
        ({"windows": [95]}, "nothing would be left out"),
        ({"windows": [16, 8]}, "ascending"),
        ({"verification": {"data": "calibration"}}, "hold texts back"),
        ({"verification": {"copied_tokens": 60}}, "`verification.copied_tokens` is more than half"),
        ({"compare": [{}]}, "set one of `block_global`"),
        ({"sinks": -1}, "sinks"),
        ({"windows": [0]}, "windows"),
    ],
)
def test_fields_that_do_not_fit_together_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="validation error") as caught:
        _config(**fields)
    assert message in str(caught.value)


def test_models_whose_layers_all_have_windows_and_encoders_are_refused(tmp_path: Path) -> None:
    changes = {"sliding_window": 16}
    mistral = save_decoder(tmp_path / "mistral", "tiny-mistral", changes)
    with pytest.raises(
        RequirementError, match="all layers of the model attend to a sliding window"
    ):
        SparseAttention().estimate(_config(), facts_of(mistral.model), _planned())
    gemma = save_decoder(tmp_path / "gemma", "tiny-gemma3", {"use_bidirectional_attention": True})
    assert facts_of(gemma.model).capability(AttentionHeads) is None
    write_attention_pattern(AttentionPattern(layers=(None,) * 3), gemma.model)
    with pytest.raises(Exception, match="has no causal attention with a cache"):
        read_description(gemma.model)


def test_texts_that_turn_out_to_be_short_are_an_error_before_anything_is_measured(
    llama: SimpleNamespace, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="a text has 96 tokens, and `context_length` is 128"):
        _run(llama, tmp_path, _config(context_length=128))


def test_ranges_double_and_the_end_of_a_text_repeats_its_start() -> None:
    spans = [(span.start, span.stop) for span in position_ranges(260, 1888)]
    assert spans == [(260, 512), (512, 1024), (1024, 1888)]
    assert [(span.start, span.stop) for span in position_ranges(10, 76)] == [(10, 76)]
    text = with_repetition(torch.arange(100), 20)
    assert text[-20:].tolist() == list(range(15, 35))
    assert text[:80].tolist() == list(range(80))
