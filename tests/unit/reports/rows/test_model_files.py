from pathlib import Path

import pytest

from compressor.artifacts.artifact import Artifact, entries_of
from compressor.errors import DamagedArtifactError
from compressor.reports.rows import model_files
from tests.support.reports import manifest, measurement


@pytest.mark.parametrize(
    "content", ["", "[]", '{"tensors": {"x": {}}}', '{"tensors": {"x": {"values": "many"}}}']
)
def test_a_damaged_calibration_table_is_an_error(tmp_path: Path, content: str) -> None:
    assert model_files.read_calibration(tmp_path) == []
    (tmp_path / "calibration.json").write_text(content)
    with pytest.raises(DamagedArtifactError, match=r"calibration\.json is"):
        model_files.read_calibration(tmp_path)


def test_the_most_clipped_ranges_keep_their_order() -> None:
    ranges = [
        model_files.Range(str(index), 1, -1.0, 10.0, bound)
        for index, bound in enumerate([10.0, 2.0, 5.0, 1.0])
    ]
    assert [range_.tensor for range_ in model_files.most_clipped(ranges, 2)] == ["1", "3"]


def test_a_latency_report_is_read(tmp_path: Path) -> None:
    assert model_files.read_latency(Artifact(tmp_path, manifest())) is None
    latency = measurement().latency
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports/latency.json").write_text(latency.model_dump_json())
    listed = manifest(reports=entries_of(tmp_path, "reports"))
    assert model_files.read_latency(Artifact(tmp_path, listed)) == latency


def test_a_damaged_latency_report_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports/latency.json").write_text("{")
    listed = manifest(reports=entries_of(tmp_path, "reports"))
    artifact = Artifact(tmp_path, listed)
    for content in ("{", "[]"):  # not a report; and another content than the manifest states
        (tmp_path / "reports/latency.json").write_text(content)
        with pytest.raises(DamagedArtifactError, match=r"latency\.json is damaged"):
            model_files.read_latency(artifact)


def test_an_artifact_whose_format_is_not_installed_is_described(tmp_path: Path) -> None:
    artifact = Artifact(tmp_path, manifest(format="toaster"))
    ((label, text),) = model_files.describe_model(artifact)
    assert label == "cannot be read"
    assert "toaster" in text


def test_a_model_that_its_format_cannot_read_gives_the_reason(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.onnx").write_bytes(b"\xff")
    ((label, text),) = model_files.describe_model(Artifact(tmp_path, manifest(format="onnx")))
    assert label == "cannot be read"
    assert "is not an ONNX model" in text
