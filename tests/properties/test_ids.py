"""Changes that must change an artifact's id, and changes that must not."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.artifacts.store import Store
from compressor.data.contract import SourceContext
from compressor.engine.plan.pipeline import load_pipeline
from compressor.engine.plan.planner import make_plan
from tests.support.tiny_files import draw_pictures, tiny_onnx

PIPELINE = """\
# {comment}
version: 1
name: toy
seed: {seed}
threads: {threads}
model: {{path: model}}
passes:
  - {{type: toy, name: {first}, rounds: {rounds}{explicit}}}
  - {{rounds: 3, name: second, type: toy}}  # {comment}
"""
DEFAULTS = {
    "comment": "",
    "seed": 0,
    "threads": 2,
    "first": "first",
    "rounds": 5,
    "explicit": "",
}
EXPLICIT = ", sleep: 0.0, fail: null"
"""The defaults of the other fields, written out."""


def plan_ids(content: bytes = b"a model", **values: object) -> list[str]:
    """Return the ids of source and both steps, for a file of the model and pipeline values."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model").mkdir()
        (Path(folder) / "model" / "model.onnx").write_bytes(tiny_onnx())
        (Path(folder) / "model" / "tokenizer.json").write_bytes(content)
        file = Path(folder) / "pipeline.yaml"
        file.write_text(PIPELINE.format(**{**DEFAULTS, **values}))
        pipeline = load_pipeline(file)
        plan = make_plan(pipeline, Store(Path(folder) / "store"), SourceContext(pipeline.base))
        return [step.artifact_id for step in plan.steps]


BASE = plan_ids()
COMMENTS = st.text("abcdefghijklmnopqrstuvwxyz ", max_size=20)


@settings(max_examples=25, deadline=None)
@given(
    comment=COMMENTS,
    first=st.text("abcdefghij", min_size=1, max_size=8),
    explicit=st.sampled_from(["", EXPLICIT]),
)
def test_comments_names_order_and_explicit_defaults_do_not_change_ids(
    comment: str, first: str, explicit: str
) -> None:
    assert plan_ids(comment=comment, first=first, explicit=explicit) == BASE


@settings(max_examples=25, deadline=None)
@given(position=st.integers(0, 6), bit=st.integers(0, 7))
def test_one_bit_of_the_model_changes_every_id(position: int, bit: int) -> None:
    content = bytearray(b"a model")
    content[position] ^= 1 << bit
    assert all(new != old for new, old in zip(plan_ids(content=bytes(content)), BASE, strict=True))


@settings(max_examples=25, deadline=None)
@given(rounds=st.integers(0, 100).filter(lambda value: value != 5))
def test_a_field_changes_the_ids_of_its_step_and_of_later_steps(rounds: int) -> None:
    new = plan_ids(rounds=rounds)
    assert new[0] == BASE[0]
    assert new[1] != BASE[1]
    assert new[2] != BASE[2]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(1, 1000), threads=st.integers(3, 64))
def test_seed_and_threads_change_every_id(seed: int, threads: int) -> None:
    assert set(plan_ids(seed=seed)).isdisjoint(BASE)
    assert set(plan_ids(threads=threads)).isdisjoint(BASE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{type: train, training: {average: 0.5}}", "{type: train, training: {ema_decay: 0.5}}"),
        (
            "{type: qat, calibration: {data: train}, exclude: [head]}",
            "{type: ptq, name: qat, calibration: {data: train}, ignore: [head]}",
        ),
        (
            "{type: awq, format: compressed-tensors, drift: 0.25, "
            "calibration: {data: train, num_samples: 4}}",
            "{type: weight-only, name: awq, format: compressed-tensors, error_compensation: 0.25, "
            "calibration: {data: train, num_samples: 4}}",
        ),
    ],
)
def test_a_renamed_key_or_pass_gives_the_same_id(old: str, new: str, tmp_path: Path) -> None:
    def planned_id(step: str) -> str:
        file = tmp_path / "pipeline.yaml"
        file.write_text(
            "version: 1\nname: p\nmodel: {family: image-classifier, preset: small}\n"
            f"data:\n  train: {{source: images, path: pictures, image_size: 64}}\n"
            "  validation: {source: images, path: pictures, image_size: 64}\n"
            f"passes:\n  - {step}\n"
        )
        pipeline = load_pipeline(file)
        plan = make_plan(pipeline, Store(tmp_path / "store"), SourceContext(tmp_path))
        return plan.steps[-1].artifact_id

    draw_pictures(tmp_path / "pictures", 2)
    assert planned_id(old) == planned_id(new)
