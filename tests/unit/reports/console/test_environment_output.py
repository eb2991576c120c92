import pytest

from compressor.analysis.catalogue import CatalogueEntry, FieldEntry
from compressor.analysis.doctor import Check, Diagnosis
from compressor.reports.console.environment import render_catalogue, render_doctor, render_entry

FIELDS = (
    FieldEntry(name="bits", type="int", required=True, default=None, description="Bits."),
    FieldEntry(name="axes", type="list of str", required=False, default=("a", "b"), description=""),
    FieldEntry(name="fold", type="bool", required=False, default=False, description="x " * 100),
    FieldEntry(name="nested", type="Nested", required=False, default={"a": 1}, description="N."),
)
ENTRY = CatalogueEntry(
    group="pass",
    name="awq",
    aliases=("weight-only",),
    summary="Quantize weights.",
    description="Quantize weights.\n\nIn detail.",
    reads=("torch",),
    writes="packed",
    needs=("foldable linear groups",),
    fields=FIELDS,
)


def test_an_entry_shows_each_field_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    render_entry(ENTRY)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert "reads torch; writes packed" in lines
    assert "needs: foldable linear groups" in lines
    assert "other names: weight-only" in lines
    assert "bits  int, required" in lines
    assert "axes  list of str, default [a, b]" in lines
    assert "fold  bool, default false" in lines
    assert "nested  Nested, default see below" in lines
    assert lines[lines.index("bits  int, required") + 1] == "    Bits."
    assert all(len(line) <= 132 for line in lines)


def test_the_catalogue_lists_each_group(capsys: pytest.CaptureFixture[str]) -> None:
    family = CatalogueEntry(
        group="model family", name="phone", summary="", description="", presets=("9b",)
    )
    render_catalogue([ENTRY, family])
    output = " ".join(capsys.readouterr().out.split())
    assert "awq torch → packed Quantize weights." in output
    assert "model family phone 9b" in output


def test_a_failed_check_shows_its_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    checks = (
        Check(name="torch", ok=True, value="2.13.0"),
        Check(name="onnx", ok=False, value="not installed", remedy="install it"),
        Check(name="extra trt", ok=False, value="not installed", optional=True),
    )
    render_doctor(Diagnosis(ok=False, checks=checks, machine={"cores": 2}))
    output = capsys.readouterr().out
    assert "✓ torch: 2.13.0" in output
    assert "✗ onnx: not installed\n    → install it" in output
    assert "– extra trt: not installed" in output
