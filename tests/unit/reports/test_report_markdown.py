from pathlib import Path

from compressor.artifacts.manifest import FileEntry, PassRecord
from compressor.artifacts.runs import GateResult
from compressor.reports.pages.markdown import artifact_markdown, fenced, run_markdown, table, text
from compressor.reports.rows.run import RunReport
from tests.support.reports import history, manifest, measurement, phone_run

COMMAND = "autoglm-compress run pipeline.yaml"


def run_report(tmp_path: Path) -> RunReport:
    gate = GateResult(
        gate="top1 min 0.9",
        step="onnx",
        metric="top1",
        unit="fraction",
        value=0.802,
        found=0.802,
        low=0.79,
        high=0.81,
        limit=0.9,
        passed=False,
        reason="0.802 is below 0.9",
    )
    return RunReport(
        "phone", phone_run(tmp_path), [gate], COMMAND, [("onnx", "could not be simplified")]
    )


def line(page: str, start: str) -> str:
    return next(one for one in page.splitlines() if one.startswith(start))


def test_a_run_shows_each_step_with_what_it_cost_and_won(tmp_path: Path) -> None:
    row = line(run_markdown(run_report(tmp_path)), "| student ")
    assert "80.2 % \\[78.7–81.7 %\\] (≈ −2.9 pts)" in row
    assert "4.10 ms" in row
    assert "(×0.436)" in row


def test_an_unmeasured_source_shows_dashes(tmp_path: Path) -> None:
    row = line(run_markdown(run_report(tmp_path)), "| source ")
    assert row.startswith("| source | torch | – | – | – | 18.4 MB | – |")


def test_gates_notes_and_the_command_are_told(tmp_path: Path) -> None:
    page = run_markdown(run_report(tmp_path))
    told = "| top1 min 0.9 | onnx | 80.2 % | 80.2 % | 79.0 % … 81.0 % | ≥ 90.0 % | – | failed |"
    assert line(page, "| top1 min 0.9 ") == told
    assert "- **teacher**: a choice was made" in page
    assert "- **onnx**: could not be simplified" in page
    assert f"```sh\n{COMMAND}\n```" in page


def test_every_table_has_as_many_cells_in_each_row(tmp_path: Path) -> None:
    pages = (
        run_markdown(run_report(tmp_path)),
        artifact_markdown(manifest(metrics=measurement().metrics), None, COMMAND),
    )
    for page in pages:
        for block in page.split("\n\n"):
            if block.startswith("|"):
                assert len({row.count("|") - row.count("\\|") for row in block.splitlines()}) == 1


def test_an_artifact_tells_what_it_is_and_how_it_was_measured() -> None:
    found = measurement()
    page = artifact_markdown(manifest(metrics=found.metrics, summary={"kept": 12}), found, COMMAND)
    assert "| top-1 | 80.0 % | 78.5–81.5 % | 2000 |" in page
    assert "| input speech | 500 |" in page
    assert "| input speech · language zh | 500 |" in page
    assert "with the answers of" not in page
    assert "100 timed calls after 10 for warm-up" in page
    assert '"epochs": 3' in page
    assert "cd" * 32 in page
    assert "Example CPU, 2 cores" in page
    assert "| kept | 12 |" in page


def test_the_history_is_no_row_of_the_summary() -> None:
    assert "temperature" not in artifact_markdown(
        manifest(
            summary={"history": history()}, pass_=PassRecord(name="train", version=1, config={})
        ),
        None,
        COMMAND,
    )


def test_records_of_a_summary_are_a_table() -> None:
    cuts = [
        {"axis": "mlp", "before": 1536, "kept": 0.98765},
        {"axis": "a|b", "before": 64, "kept": 1.0},
    ]
    told = artifact_markdown(
        manifest(summary={"cuts": cuts, "odd": [{"a": 1}, {"b": 2}]}), None, "again"
    )
    assert "## Cuts" in told
    assert "| mlp | 1,536 | 0.9877 |" in told
    assert "cuts" not in told.split("## What the pass tells")[1].split("##")[0]
    assert "| odd |" in told


def test_hostile_names_stay_text() -> None:
    evil = "a|b`c<script>*d*[e](http://x)\n# f"
    page = artifact_markdown(
        manifest(files={evil: FileEntry(sha256="0" * 64, bytes=1)}, step=evil), None, COMMAND
    )
    assert "<script>" not in page.replace("\\<script\\>", "")
    assert "\n# f" not in page
    assert "[e](" not in page.replace("\\[e\\](", "")


def test_text_is_one_line_and_a_cell_cannot_end_its_row() -> None:
    assert text("a\n\n| b") == "a \\| b"
    assert table(("h",), [("x|y",)]).splitlines()[-1] == "| x\\|y |"


def test_a_fence_is_longer_than_what_it_holds() -> None:
    assert fenced("a ```` b", "sh").startswith("`````sh\n")


def test_what_an_artifact_was_compared_with_is_told() -> None:
    found = measurement()
    compared = found.model_copy(
        update={"accuracy": found.accuracy.model_copy(update={"reference": "ab" * 32})}
    )
    page = artifact_markdown(manifest(metrics=found.metrics), compared, COMMAND)
    assert "Agreement and KL divergence are with the answers of artifact abababababab." in page
