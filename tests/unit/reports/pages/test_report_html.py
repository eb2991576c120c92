import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from compressor.artifacts.gain_report import Gain
from compressor.artifacts.manifest import FileEntry
from compressor.reports.pages import charts
from compressor.reports.pages.html import artifact_html, run_html
from compressor.reports.rows.ladder import LadderInput
from tests.support.reports import (
    COMMAND,
    fraction_metric,
    gate_result,
    manifest,
    measurement,
    phone_run,
    run_report,
    training_history,
)

EVIL = '"><script>alert(1)</script>$x_{$&\u4e2d'


class Page(HTMLParser):
    """The content of a page: its tags, ids, links and text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name in {"src", "href", "data", "action", "srcset"}:
                self.links.append(str(value))
            assert not name.startswith("on")

    def handle_data(self, data: str) -> None:
        self.text += data


def run_page(tmp_path: Path, **changes: object) -> str:
    return run_html(run_report(tmp_path, **changes), tmp_path / "runs" / "one", "d" * 64)


def artifact_page(**changes: object) -> str:
    measured = measurement()
    values = {"metrics": measured.metrics, "summary": {"history": training_history()}, **changes}
    return artifact_html(manifest(**values), measured, COMMAND)


def svgs(source: str) -> list[str]:
    return re.findall(r"<svg.*?</svg>", source, re.DOTALL)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [run_page(tmp_path_factory.mktemp("run")), artifact_page()]


def test_a_page_needs_no_network_and_no_script(sources: list[str]) -> None:
    for source in sources:
        page = Page(source)
        assert "script" not in page.tags
        assert not re.search(r"https?://|//www|@import", source)
        assert all(link.startswith(("#", "../", "data:,")) for link in page.links)


def test_ids_are_unique_and_every_reference_in_a_figure_has_its_target(sources: list[str]) -> None:
    for source in sources:
        page = Page(source)
        assert len(page.ids) == len(set(page.ids))
        wanted = {link[1:] for link in page.links if link.startswith("#")} | set(
            re.findall(r"url\(#([^)]+)\)", source)
        )
        assert wanted <= set(page.ids)


def test_figures_are_well_formed_text_in_the_colours_of_the_page(sources: list[str]) -> None:
    run, artifact = map(svgs, sources)
    assert len(run) == 6  # two trade-offs, slices, latency, two histories
    assert len(artifact) == 4  # slices, distribution, calls, history
    for figure in (*run, *artifact):
        assert ET.fromstring(figure).attrib["aria-label"]
        assert "<text" in figure
        colours = set(
            re.findall(r"#[0-9a-fA-F]{6}\b", re.sub(r'(?:href|url\()="?#[^")]*', "", figure))
        )
        assert colours <= {"#000000", "#ffffff"}, colours
        assert "var(--accent)" in figure


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    report = run_report(tmp_path)
    assert run_html(report, tmp_path, "d") == run_html(report, tmp_path, "d")


def test_the_ladder_and_its_changes_are_in_the_page(sources: list[str]) -> None:
    text = Page(sources[0]).text
    for part in (
        "80.2 %",
        "78.7–81.7 %",
        "≈ −2.9 pts",
        "4.10 ms",
        "×0.436",
        "18.4 MB",
        COMMAND,
        "Example CPU",
    ):
        assert part in text
    assert "input speech · language zh" in text


def test_gates_are_shown(tmp_path: Path) -> None:
    gates = [gate_result(value=None, found=None, reason="onnx has no top1")]
    page = run_page(tmp_path, gates=gates)
    assert "0 of 1 gates passed" in page
    assert "onnx has no top1" in page


def test_gains_and_their_reasons_are_shown(tmp_path: Path) -> None:
    gain = Gain(
        step="onnx",
        pass_name="export-onnx",
        against="student",
        runtime="ONNX Runtime",
        size_ratio=0.25,
        parameters_ratio=1,
        macs_ratio=1,
        low_precision_weights=0.375,
        low_precision_macs=0.19,
        speedup=0.8,
        speedup_low=0.7,
        speedup_high=0.9,
        why_not=("98 roundings are left",),
    )
    page = run_page(tmp_path, gains=[gain])
    for text in (
        "Gain of each step",
        "37.5 %",
        "×0.700 … ×0.900",
        "not significantly faster than student: 98 roundings",
    ):
        assert text in page


def test_links_lead_from_the_run_to_the_artifacts(tmp_path: Path) -> None:
    report = run_report(tmp_path)
    folder = tmp_path / "runs" / "one"
    page = Page(run_html(report, folder, "d"))
    targets = {(folder / link).resolve() for link in page.links if link.startswith("../")}
    assert targets == {(step.artifact.path / "report.html").resolve() for step in report.steps}


def test_the_lineage_follows_the_parents(tmp_path: Path) -> None:
    page = run_page(tmp_path)
    lineage = page[page.index('<ul class="lineage">') :]
    depth = {}
    at = 0
    for tag, step in re.findall(
        r'(</?ul)|<span class="step">(\w+)</span>', lineage[: lineage.index("</div>")]
    ):
        at += {"<ul": 1, "</ul": -1, "": 0}[tag]
        if step:
            depth[step] = at
    assert depth == {"source": 1, "teacher": 2, "student": 3, "onnx": 4, "pruned": 3}


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    steps = phone_run(tmp_path)
    last = steps[-1]
    metrics = (*last.artifact.manifest.metrics, fraction_metric(f"top1[{EVIL}]", 0.7))
    evil = last.artifact.manifest.model_copy(
        update={"metrics": metrics, "summary": {"notes": [EVIL]}, "step": EVIL}
    )
    steps[-1] = LadderInput(
        EVIL, type(last.artifact)(last.artifact.path, evil), False, "teacher", "torch"
    )
    page = run_page(tmp_path, steps=steps, pipeline=EVIL, command=EVIL)
    assert "script" not in Page(page).tags
    assert EVIL in Page(page).text
    for figure in svgs(page):
        ET.fromstring(figure)
    page = artifact_page(
        step=EVIL, files={EVIL: FileEntry(sha256="0" * 64, bytes=1)}, summary={EVIL: EVIL}
    )
    assert "script" not in Page(page).tags


def test_an_unmeasured_artifact_has_a_page_without_charts() -> None:
    page = artifact_html(manifest(), None, COMMAND)
    assert not svgs(page)
    assert "4.20 MB" in page


def test_a_run_of_unmeasured_steps_has_a_page(tmp_path: Path) -> None:
    page = run_page(tmp_path, steps=phone_run(tmp_path)[:1])
    assert not svgs(page)
    assert "18.4 MB" in page


def test_the_pareto_front_omits_points_beaten_on_both_axes() -> None:
    def point(label: str, cost: float, gain: float) -> charts.Point:
        return charts.Point(label, fraction_metric("cost", cost), fraction_metric("gain", gain))

    points = [
        point("slow", 9, 0.9),
        point("beaten", 5, 0.7),
        point("fast", 1, 0.8),
        point("equal", 2, 0.8),
    ]
    assert [point.label for point in charts.pareto_front(points)] == ["fast", "slow"]


def test_history_shows_changing_values_and_the_loss_first() -> None:
    entries = [
        {"step": 1, "rate": 0.1, "loss": 2.0, "seed": 3, "stage": "soft"},
        {"step": 2, "rate": 0.2, "loss": 1.0, "seed": 3},
    ]
    assert charts.history_keys(entries) == ["loss", "rate"]


def test_equal_latencies_can_be_drawn() -> None:
    ET.fromstring(charts.latencies("flat", [("a", [2.0] * 10), ("b", [2.0] * 10)]))
