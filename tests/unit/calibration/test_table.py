"""Calibration tables are read back, and refused if they do not belong to the model."""

import json

import pytest

from calibration.table import TABLE, CalibrationTable, Range, read_table
from compressor.errors import RequirementError


def table(model="ab12"):
    ranges = {"head:input": Range(values=4, minimum=-1.0, maximum=2.0, bound=1.5)}
    return CalibrationTable(
        model=model, observer="mse", bits=8, num_samples=4, samples_sha256="0" * 64, tensors=ranges
    )


def test_a_table_is_read_back_and_is_readable_json(tmp_path):
    table().write(tmp_path)
    assert json.loads((tmp_path / TABLE).read_text())["tensors"]["head:input"]["bound"] == 1.5
    assert read_table(tmp_path, "ab12", 8) == table()


def test_a_table_of_another_model_is_refused(tmp_path):
    table().write(tmp_path)
    message = "belongs to another model: its ranges are those of ab12, and this model is cd34"
    with pytest.raises(RequirementError, match=message):
        read_table(tmp_path, "cd34", 8)


@pytest.mark.parametrize(
    "text",
    ["{", "\ud8ff", '{"version": 2}', json.dumps({"version": 1, "tensors": {"a": {"bound": -1}}})],
)
def test_a_damaged_table_is_refused(tmp_path, text):
    (tmp_path / TABLE).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(RequirementError, match=r"is damaged|is not valid JSON|is not UTF-8"):
        read_table(tmp_path, "ab12", 8)


def test_a_table_for_other_bits_is_refused(tmp_path):
    table().write(tmp_path)
    with pytest.raises(RequirementError, match="is for grids of 8 bits, but this step uses 4 bits"):
        read_table(tmp_path, "ab12", 4)


def test_a_missing_table_is_refused(tmp_path):
    with pytest.raises(RequirementError, match="holds no calibration"):
        read_table(tmp_path, "ab12", 8)
