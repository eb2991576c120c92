"""Notes of a data set reach the listener of a run once."""

from __future__ import annotations

from pathlib import Path

from compressor.artifacts.store import Store
from compressor.data.contract import SourceContext
from compressor.engine import events
from compressor.engine.plan.pipeline import load_pipeline
from compressor.engine.plan.planner import make_plan
from compressor.engine.run.checked_data import RunData
from tests.support.tiny_files import draw_pictures


def test_a_note_is_emitted_once_however_often_the_set_is_opened(tmp_path: Path) -> None:
    draw_pictures(tmp_path / "pictures", 2)
    (tmp_path / "pictures" / "labels.csv").write_text("x")
    (tmp_path / "pipeline.yaml").write_text(
        "version: 1\nname: p\nmodel: {family: image-classifier, preset: tiny}\n"
        "data: {train: {source: images, path: pictures, image_size: 16}}\n"
        "passes: [{type: train, validation: null}]\n"
    )
    pipeline = load_pipeline(tmp_path / "pipeline.yaml")
    plan = make_plan(pipeline, Store(tmp_path / "store"), SourceContext(tmp_path))
    emitted: list[events.Event] = []
    data = RunData(plan, emitted.append)
    for _ in range(2):
        data.open(plan.step("train"), "train")
        data.keep(())
    notes = [event for event in emitted if isinstance(event, events.StepNote)]
    assert len(notes) == 1
    assert "labels.csv" in notes[0].text
