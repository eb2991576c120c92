"""Tests of the diagnosis of a machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from compressor.analysis import doctor
from compressor.runtimes.onnxruntime import integer_kernels


def test_a_missing_extra_names_its_install_command_and_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = doctor.tool_version
    missing = {"cryptography", "tensorrt-rtx"}
    monkeypatch.setattr(
        doctor, "tool_version", lambda name: "not installed" if name in missing else real(name)
    )
    diagnosis = doctor.diagnose(tmp_path)
    extras = {
        check.name.split(",")[0]: check
        for check in diagnosis.checks
        if check.name.startswith("extra")
    }
    assert extras["extra provenance"].remedy == "pip install 'autoglm-compress[provenance]'"
    assert "sign, archive" in extras["extra provenance"].name
    assert not extras["extra trt-rtx"].ok
    assert diagnosis.ok


def test_a_missing_core_library_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = doctor.tool_version
    monkeypatch.setattr(
        doctor, "tool_version", lambda name: "not installed" if name == "onnx" else real(name)
    )
    assert not doctor.diagnose(tmp_path).ok


@pytest.mark.parametrize(
    ("line", "flags"),
    [
        ("flags\t: fpu avx2 avx512_vnni", ["avx2", "avx512_vnni"]),
        ("Features : asimd i8mm", ["asimd", "i8mm"]),
        ("", []),
    ],
)
def test_instructions_are_read_on_x86_and_arm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, flags: list[str]
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor: 0\n{line}\n")
    monkeypatch.setattr(doctor, "Path", lambda _: tmp_path / "cpuinfo")
    assert doctor._flags() == flags


def test_the_diagnosis_describes_the_machine(tmp_path: Path) -> None:
    machine = doctor.diagnose(tmp_path).machine
    assert {
        "cpu",
        "cores",
        "memory_bytes",
        "instructions",
        "int8",
        "gpus",
        "onnxruntime",
    } <= machine.keys()
    assert "CPU" in machine["onnxruntime"]


@pytest.mark.parametrize("saturates", [False, True])
def test_saturating_products_are_reported(
    saturates: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integer_kernels, "integer_products_saturate", lambda: saturates)
    text = doctor.diagnose(tmp_path).machine["int8"]
    assert ("session.x64quantprecision=1" in text) == saturates
    assert ("except those with weights that two layers share" in text) == saturates
