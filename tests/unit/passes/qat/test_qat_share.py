"""Share of the model that becomes integers: reported, warned about, and refused."""

import pytest

from compressor.errors import RequirementError
from passes.qat import quantize
from passes.qat.layer_selection import Selection
from tests.support.qat import run_qat


def test_the_share_is_reported_and_little_is_warned_about(parent, tmp_path):
    _, summary, notes = run_qat(parent, tmp_path, {})
    assert summary["quantized_share_of_weights"] > 0.9
    assert summary["quantized_share_of_macs"] > 0.9
    assert not [note for note in notes if "are quantized" in note]
    _, summary, notes = run_qat(parent, tmp_path / "head", {"ignore": ["vision*"]})
    assert summary["quantized_share_of_weights"] < 0.5
    assert any("of the weights are quantized" in note for note in notes)


def test_next_to_nothing_is_refused_before_calibration(parent, tmp_path, monkeypatch):
    def only_the_head(config, layers, module):
        return Selection(("head",), (), {})

    def observe(*_, **__):
        raise AssertionError("calibration started")

    monkeypatch.setattr(quantize, "select_layers", only_the_head)
    monkeypatch.setattr(quantize, "observe_ranges", observe)
    with pytest.raises(RequirementError, match=r"only .*% of the weights are quantized") as caught:
        run_qat(parent, tmp_path, {"min_share": 0.9})
    assert "quantize the weights alone with `type: awq`" in str(caught.value)
    with pytest.raises(AssertionError, match="calibration started"):
        run_qat(parent, tmp_path / "again", {"min_share": 0})
