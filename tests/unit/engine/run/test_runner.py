from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from compressor.artifacts.artifact import verify
from compressor.artifacts.manifest import Manifest
from compressor.artifacts.store import Store
from compressor.data.contract import SourceContext
from compressor.engine import events
from compressor.engine.plan.pipeline import load_pipeline
from compressor.engine.plan.planner import make_plan
from compressor.engine.run.runner import Runner, RunResult, select
from compressor.errors import CompressError, PassError, StorageError, UsageError
from compressor.evaluation.protocol import ReferenceModel
from compressor.evaluation.records import Measurement
from compressor.runtimes.formats import StoredModel
from tests.support.tiny_files import tiny_onnx


class Run:
    """Runs a pipeline file into ``store`` beside it, and keeps the events."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.events: list[events.Event] = []

    def __call__(
        self, *sets: str, force: bool = False, store: str = "store", **selection: str | None
    ) -> RunResult:
        self.events = []
        pipeline = load_pipeline(self.file, sets)
        plan = make_plan(pipeline, Store(self.file.parent / store), SourceContext(pipeline.base))
        selected = select(plan, **({"start": None, "until": None, "only": None} | selection))
        return Runner(plan, self.events.append, write_report, selected=selected, force=force).run()

    def how(self) -> dict[str, str]:
        return {
            event.step: event.how for event in self.events if isinstance(event, events.StepFinished)
        }


def write_report(folder: Path, manifest: Manifest, measurement: object) -> None:
    assert measurement is None
    (folder / "report.md").write_text(manifest.id)


@pytest.fixture
def run(toy_pipeline: Path) -> Run:
    return Run(toy_pipeline)


def model_bytes(result: RunResult) -> list[bytes]:
    return [(step.artifact.model / "model.onnx").read_bytes() for step in result.steps]


def test_the_second_run_builds_nothing(run: Run) -> None:
    first = run()
    assert run.how() == {"source": "built", "first": "built", "second": "built"}
    for step in first.steps:
        verify(step.artifact)
    again = run()
    assert set(run.how().values()) == {"cached"}
    assert [step.artifact.id for step in first.steps] == [step.artifact.id for step in again.steps]


def test_without_passes_the_gates_check_the_source(run: Run) -> None:
    result = run("passes=[]", 'gates=[{"metric": "size_bytes", "max": 1}]')
    assert run.how() == {"source": "built"}
    assert [(gate.step, gate.passed) for gate in result.gates] == [("source", False)]


def test_two_empty_stores_get_the_same_ids_and_bytes(run: Run) -> None:
    results = [run(store=name) for name in ("one", "two")]
    manifests = [[step.artifact.manifest for step in result.steps] for result in results]
    assert [manifest.files for manifest in manifests[0]] == [
        manifest.files for manifest in manifests[1]
    ]
    assert [manifest.id for manifest in manifests[0]] == [manifest.id for manifest in manifests[1]]


def test_a_changed_input_builds_again_and_keeps_the_old_artifacts(run: Run) -> None:
    old = run()
    (run.file.parent / "model" / "model.onnx").write_bytes(tiny_onnx(2.0))
    new = run()
    assert set(run.how().values()) == {"built"}
    assert model_bytes(new) != model_bytes(old)
    assert all(step.artifact.path.is_dir() for step in old.steps)


@pytest.mark.parametrize("file", ["model/model.onnx", "model/model.onnx.data", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_artifact_is_set_aside_and_built_again(run: Run, file: str, damage: str) -> None:
    before = run()
    victim = before.steps[1].artifact.path / file
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 0x10
    if damage == "flip":
        victim.write_bytes(content)
    elif damage == "truncate":
        victim.write_bytes(victim.read_bytes()[:-10])
    else:
        victim.unlink()
    after = run()
    assert run.how() == {"source": "cached", "first": "built", "second": "cached"}
    (damaged,) = [event for event in run.events if isinstance(event, events.ArtifactDamaged)]
    assert damaged.moved_to.is_dir()
    assert model_bytes(after) == model_bytes(before)
    verify(after.steps[1].artifact)


def test_a_damaged_report_is_measured_again_without_building(run: Run) -> None:
    before = run()
    (before.steps[1].artifact.path / "report.md").write_text("tampered")
    after = run()
    assert run.how() == {"source": "cached", "first": "measured", "second": "cached"}
    verify(after.steps[1].artifact)


def test_checks_before_and_after_a_pass_are_progress_too(run: Run) -> None:
    run()
    shown = [
        event.what
        for event in run.events
        if isinstance(event, events.StepProgress) and event.step == "second"
    ]
    assert shown[0] == "check the inputs"
    assert shown[-1] == "check the result"


def test_a_failing_pass_fails_the_run_and_publishes_nothing(run: Run) -> None:
    with pytest.raises(PassError, match=r"second \(toy\) failed: ValueError: no luck"):
        run("passes[1].fail=no luck")
    assert isinstance(run.events[-1], events.StepFailed)
    names = [path.name.split("-")[0] for path in Store(run.file.parent / "store").artifacts()]
    assert sorted(names) == ["source", "toy"]
    run()
    assert run.how() == {"source": "cached", "first": "cached", "second": "built"}


def test_an_interrupted_pass_resumes_from_its_checkpoint(run: Run) -> None:
    whole = run(store="whole")

    def interrupt(event: events.Event) -> None:
        if _is_second(event) and event.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(CompressError) as caught:
        run_with(run, interrupt)
    assert caught.value.exit_code == 130
    rounds: list[int] = []
    result = run_with(run, lambda event: rounds.append(event.done) if _is_second(event) else None)
    assert rounds == [3], "rounds 1 and 2 are not repeated"
    assert model_bytes(result) == model_bytes(whole)


def _is_second(event: events.Event) -> bool:
    return (
        isinstance(event, events.StepProgress) and event.step == "second" and event.what == "round"
    )


def run_with(run: Run, listener: events.Listener) -> RunResult:
    pipeline = load_pipeline(run.file)
    plan = make_plan(pipeline, Store(run.file.parent / "store"), SourceContext(pipeline.base))
    selected = select(plan, start=None, until=None, only=None)
    return Runner(plan, listener, write_report, selected=selected).run()


def test_until_only_and_from_select_steps(run: Run) -> None:
    run(until="first")
    assert list(run.how()) == ["source", "first"]
    with pytest.raises(UsageError, match="no such step"):
        run(only="third")
    run(only="second")
    assert run.how() == {"source": "cached", "first": "cached", "second": "built"}
    shutil.rmtree(
        next(
            path
            for path in Store(run.file.parent / "store").artifacts()
            if path.name.startswith("source")
        )
    )
    with pytest.raises(UsageError, match="run without --from"):
        run(start="second")


def test_force_builds_only_the_selected_steps_again(run: Run) -> None:
    before = run()
    after = run(force=True, only="second")
    assert run.how() == {"source": "cached", "first": "cached", "second": "built"}
    assert model_bytes(after) == model_bytes(before)


def test_a_store_that_cannot_be_written_is_an_error(run: Run) -> None:
    (run.file.parent / "store").write_text("a file")
    with pytest.raises(StorageError):
        run()


def test_branches_share_their_common_step(run: Run) -> None:
    run.file.write_text(
        run.file.read_text() + "  - {type: toy, name: third, from: first, rounds: 9}\n"
    )
    result = run()
    parents = {step.step.name: step.artifact.manifest.parents for step in result.steps}
    common = next(step.artifact.id for step in result.steps if step.step.name == "first")
    assert parents["second"]["parent"] == parents["third"]["parent"] == common


def test_a_selected_step_also_builds_its_reference(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(run.file.parent / "numbers.npz", x=np.zeros(4, np.float32))
    with run.file.open("a") as file:
        file.write(
            "  - {type: toy, name: aside, from: source, rounds: 2}\n"
            "data:\n  numbers: {source: arrays, path: numbers.npz}\n"
            "evaluate:\n  accuracy: {data: numbers, metrics: [cosine], reference: first}\n"
        )
    requests: list[tuple[Path, ReferenceModel]] = []

    def measure(
        model: StoredModel, *_: object, reference: ReferenceModel, **__: object
    ) -> Measurement:
        requests.append((model.path, reference))
        return Measurement(accuracy=None, latency=None, metrics=())

    monkeypatch.setattr("compressor.engine.run.step_builder.measure", measure)
    monkeypatch.setattr(
        f"{__name__}.write_report", lambda folder, *_: (folder / "report.md").write_text("")
    )
    first = run(until="first").steps[1].artifact
    result = run(only="aside")
    assert [step.step.name for step in result.steps] == ["source", "first", "aside"]
    (own, itself), (_, reference) = requests
    assert itself == ReferenceModel(id=first.id, format="onnx", model=own), (
        "the reference is compared with itself"
    )
    assert reference == ReferenceModel(id=first.id, format="onnx", model=first.model)
