from pathlib import Path
from xml.etree import ElementTree as ET

from compressor.artifacts.runs import GateResult
from compressor.reports.pages.junit import run_junit
from compressor.reports.rows.run import RunReport
from tests.support.reports import phone_run


def gate(passed: bool, reason: str = "not 0.8 ≥ 0.9") -> GateResult:
    return GateResult(
        gate="top1 min 0.9",
        step="onnx",
        metric="top1",
        value=0.8,
        limit=0.9,
        passed=passed,
        reason=reason,
    )


def test_there_is_a_case_for_each_step_and_each_gate(tmp_path: Path) -> None:
    report = RunReport("phone", phone_run(tmp_path), [gate(True), gate(False)], "run")
    root = ET.fromstring(run_junit(report).encode())
    assert root.attrib["tests"] == "7"
    assert root.attrib["failures"] == "1"
    cases = root.findall("./testsuite[@name='steps']/testcase")
    assert [case.attrib["name"] for case in cases] == [
        "source",
        "teacher",
        "student",
        "onnx",
        "pruned",
    ]
    failed = root.findall("./testsuite[@name='gates']/testcase/failure")
    assert [one.attrib["message"] for one in failed] == ["not 0.8 ≥ 0.9"]


def test_what_xml_cannot_hold_is_replaced(tmp_path: Path) -> None:
    report = RunReport(
        "a\x00<b>", phone_run(tmp_path), [gate(False, "\x1b[31m\ud800&\uffff")], "run"
    )
    root = ET.fromstring(run_junit(report).encode())
    assert root.attrib["name"] == "a\ufffd<b>"
    assert root.find(".//failure").attrib["message"] == "\ufffd[31m\ufffd&\ufffd"  # type: ignore[union-attr]
