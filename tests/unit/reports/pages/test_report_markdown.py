from pathlib import Path

from compressor.artifacts.manifest import FileEntry, PassRecord
from compressor.reports.pages.markdown import (
    artifact_markdown,
    escape,
    fence,
    run_markdown,
    table,
)
from tests.support.reports import (
    COMMAND,
    gate_result,
    manifest,
    measurement,
    run_report,
    training_history,
)


def run_page(tmp_path: Path) -> str:
    notes = [("onnx", "could not be simplified")]
    return run_markdown(run_report(tmp_path, gates=[gate_result()], notes=notes))


def line_of(page: str, start: str) -> str:
    return next(line for line in page.splitlines() if line.startswith(start))


def test_the_ladder_shows_each_metric_with_its_change(tmp_path: Path) -> None:
    row = line_of(run_page(tmp_path), "| ├─ student ")
    assert "80.2 % \\[78.7–81.7 %\\] (≈ −2.9 pts)" in row
    assert "4.10 ms" in row
    assert "(×0.436)" in row


def test_an_unmeasured_source_shows_dashes(tmp_path: Path) -> None:
    row = line_of(run_page(tmp_path), "| source ")
    assert row.startswith("| source | torch | – | – | – | 18.4 MB | – |")


def test_gates_notes_and_the_command_are_shown(tmp_path: Path) -> None:
    page = run_page(tmp_path)
    sentence = "top-1 of onnx must be at least 90.0 %: 80.2 % (79.0 % … 81.0 %), failed"
    assert line_of(page, "| ✗ ") == f"| ✗ | {sentence} |  |"
    assert "- **teacher**: a choice was made" in page
    assert "- **onnx**: could not be simplified" in page
    assert f"```sh\n{COMMAND}\n```" in page


def test_all_rows_of_a_table_have_the_same_number_of_cells(tmp_path: Path) -> None:
    measured = manifest(metrics=measurement().metrics)
    for page in (run_page(tmp_path), artifact_markdown(measured, None, COMMAND)):
        for block in page.split("\n\n"):
            if block.startswith("|"):
                assert len({row.count("|") - row.count("\\|") for row in block.splitlines()}) == 1


def test_an_artifact_shows_its_metrics_and_how_they_were_measured() -> None:
    measured = measurement()
    student = manifest(metrics=measured.metrics, summary={"kept": 12})
    page = artifact_markdown(student, measured, COMMAND)
    assert "| top-1 | 80.0 % | 78.5–81.5 % | 2000 |" in page
    assert "| input speech | 500 |" in page
    assert "| input speech · language zh | 500 |" in page
    assert "compare with the outputs of" not in page
    assert "100 timed calls after 10 warm-up calls" in page
    assert '"epochs": 3' in page
    assert "cd" * 32 in page
    assert "Example CPU, 2 cores" in page
    assert "| kept | 12 |" in page


def test_the_history_is_not_a_row_of_the_summary() -> None:
    trained = manifest(
        summary={"history": training_history()},
        pass_=PassRecord(name="train", version=1, config={}),
    )
    assert "temperature" not in artifact_markdown(trained, None, COMMAND)


def test_records_with_equal_keys_become_a_table() -> None:
    cuts = [
        {"axis": "mlp", "before": 1536, "kept": 0.98765},
        {"axis": "a|b", "before": 64, "kept": 1.0},
    ]
    pruned = manifest(summary={"cuts": cuts, "odd": [{"a": 1}, {"b": 2}]})
    page = artifact_markdown(pruned, None, COMMAND)
    assert "## Cuts" in page
    assert "| mlp | 1,536 | 0.9877 |" in page
    assert "cuts" not in page.split("## Pass summary")[1].split("##")[0]
    assert "| odd |" in page


def test_hostile_names_stay_text() -> None:
    evil = "a|b`c<script>*d*[e](http://x)\n# f"
    files = {evil: FileEntry(sha256="0" * 64, bytes=1)}
    page = artifact_markdown(manifest(files=files, step=evil), None, COMMAND)
    assert "<script>" not in page.replace("\\<script\\>", "")
    assert "\n# f" not in page
    assert "[e](" not in page.replace("\\[e\\](", "")


def test_escaped_text_stays_on_one_line_and_in_its_cell() -> None:
    assert escape("a\n\n| b") == "a \\| b"
    assert table(("h",), [("x|y",)]).splitlines()[-1] == "| x\\|y |"


def test_a_fence_is_longer_than_any_fence_in_the_code() -> None:
    assert fence("a ```` b", "sh").startswith("`````sh\n")


def test_the_reference_of_compared_outputs_is_named() -> None:
    measured = measurement()
    accuracy = measured.accuracy.model_copy(update={"reference": "ab" * 32})
    compared = measured.model_copy(update={"accuracy": accuracy})
    page = artifact_markdown(manifest(metrics=measured.metrics), compared, COMMAND)
    assert "KL divergence compare with the outputs of artifact abababababab." in page
