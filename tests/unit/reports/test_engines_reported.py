"""A figure that is not the engine's own is marked wherever it is shown."""

from pathlib import Path

from compressor.artifacts.manifest import Metric
from compressor.artifacts.store import Artifact
from compressor.reports.console import output as console
from compressor.reports.pages.html import run_html
from compressor.reports.pages.markdown import run_markdown
from compressor.reports.rows import facts
from compressor.reports.rows.ladder import Ladder, LadderInput, build_ladder
from compressor.reports.rows.run import RunReport
from compressor.runtimes.tensorrt.files import (
    ENGINE,
    EngineFile,
    EngineManifest,
    Tensor,
    write_record,
)
from compressor.runtimes.tensorrt.profiles import Profile
from tests.support.reports import counted, manifest, measurement, share, timed

EXPLAINED = "† of the ONNX graph that the engine was built from, in ONNX Runtime: the engine itself did not run here"


def steps_of(executed: float, root: Path) -> list[LadderInput]:
    ran = Metric(name="executed", value=executed, unit="count", better="higher", samples=1)
    found = {
        "onnx": (
            "onnx",
            (share("top1", 0.8), timed("latency_p50_ms", 3.0), counted("size_bytes", 100, "bytes")),
        ),
        "engine": ("engine", (share("top1", 0.79), counted("size_bytes", 900, "bytes"), ran)),
    }
    return [
        LadderInput(
            name, Artifact(root / name, manifest(name, kind=kind, metrics=metrics)), False, parent
        )
        for (name, (kind, metrics)), parent in zip(found.items(), (None, "onnx"), strict=True)
    ]


def report_of(steps: list[LadderInput]) -> RunReport:
    return RunReport("phone", tuple(steps), (), "run")


def test_the_ladder_knows_which_figures_stand_in(tmp_path: Path) -> None:
    ladder: Ladder = build_ladder(steps_of(0, tmp_path))
    assert ladder.has_stand_in
    row = ladder.row("engine")
    assert [name for name in ladder.columns if row.stood_in_for(name)] == ["top1"]
    assert not ladder.row("onnx").stood_in_for("top1")
    assert "executed" not in ladder.columns
    assert not build_ladder(steps_of(1, tmp_path)).has_stand_in


def test_every_page_marks_them_and_says_what_the_mark_means(tmp_path: Path, capsys) -> None:
    for executed in (0, 1):
        report = report_of(steps_of(executed, tmp_path))
        markdown, html = run_markdown(report), run_html(report, tmp_path, "digest")
        console.render_run(report, tmp_path)
        shown = capsys.readouterr().out
        for page in (markdown, html, shown):
            assert page.count("†") == (0 if executed else 2)
            assert (EXPLAINED in page) != bool(executed)
        line = next(line for line in shown.splitlines() if line.startswith("engine"))
        assert ("79.0 % †" in line) != bool(executed)


def test_how_a_stand_in_was_measured_is_told() -> None:
    found = measurement().model_copy(update={"stand_in": "there is no GPU here", "latency": None})
    assert facts.how_measured(found)[-1].startswith(
        "A stand-in was measured: there is no GPU here."
    )
    assert "Latency was not measured." in facts.how_measured(found)[-1]
    assert not [line for line in facts.how_measured(measurement()) if "stand-in" in line]


def test_show_tells_what_engine_json_says(tmp_path: Path, capsys) -> None:
    tensor = Tensor(name="x", dtype="half", shape=(-1, 3))
    entry = EngineFile(
        file="model.sm86.engine",
        target="sm86",
        sha256="ab" * 32,
        bytes=7,
        warnings=("slow",),
        executed=False,
    )
    facts_of_build = EngineManifest(
        backend="rtx",
        precision="int8",
        floats="fp16",
        workspace_mb=64,
        optimization_level=None,
        profiles={"x": Profile(min=(1, 3), opt=(2, 3), max=(4, 3))},
        onnx={"model.onnx": "cd" * 32},
        backend_version="1.7",
        inputs=(tensor,),
        outputs=(tensor,),
        layer_types={"half": 2, "int8": 5},
        engines=(entry,),
    )
    folder = tmp_path / "tensorrt-ab"
    (folder / "model").mkdir(parents=True)
    write_record(facts_of_build, folder / "model" / ENGINE)
    console.render_artifact(Artifact(folder, manifest("engine", kind="engine")))
    shown = " ".join(capsys.readouterr().out.split())
    for told in (
        "built by rtx 1.7",
        "precision int8, the rest fp16",
        "profile x from [1, 3] over [2, 3] to [4, 3]",
        "input x half [-1, 3]",
        "2 half, 5 int8",
        "for sm86, 7 B, never executed, sha256 abab",
        "model.sm86.engine warns slow",
    ):
        assert told in shown


def test_a_bundle_is_shown_as_one(tmp_path: Path) -> None:
    assert facts.engine(tmp_path) == []
    (tmp_path / "bundle.json").write_text('{"command": "trtexec"}')
    assert facts.engine(tmp_path) == [("no engine", "a build bundle"), ("command", "trtexec")]
