from pathlib import Path
from xml.etree import ElementTree as ET

from compressor.reports.pages.junit import gates_junit, run_junit
from tests.support.reports import gate_result, run_report


def test_there_is_a_test_case_for_each_step_and_each_gate(tmp_path: Path) -> None:
    gates = [gate_result(passed=True), gate_result(reason="not 0.8 ≥ 0.9")]
    root = ET.fromstring(run_junit(run_report(tmp_path, gates=gates)).encode())
    assert root.attrib["tests"] == "7"
    assert root.attrib["failures"] == "1"
    steps = root.findall("./testsuite[@name='steps']/testcase")
    names = ["source", "teacher", "student", "onnx", "pruned"]
    assert [case.attrib["name"] for case in steps] == names
    failures = root.findall("./testsuite[@name='gates']/testcase/failure")
    assert [failure.attrib["message"] for failure in failures] == ["not 0.8 ≥ 0.9"]


def test_gates_alone_are_one_suite() -> None:
    root = ET.fromstring(gates_junit("run against baseline", [gate_result()]).encode())
    (suite,) = root.findall("./testsuite")
    assert suite.attrib["name"] == "gates"
    assert root.attrib["failures"] == suite.attrib["failures"] == "1"
    assert "limit: ≥ 90.0 %" in (root.findtext(".//system-out") or "")


def test_characters_that_xml_cannot_hold_are_replaced(tmp_path: Path) -> None:
    gates = [gate_result(reason="\x1b[31m\ud800&\uffff\x9b1m")]
    report = run_report(tmp_path, pipeline="a\x00<b>", gates=gates)
    root = ET.fromstring(run_junit(report).encode())
    assert root.attrib["name"] == "a\ufffd<b>"
    failure = root.find(".//failure")
    assert failure is not None
    assert failure.attrib["message"] == "\ufffd[31m\ufffd&\ufffd\ufffd1m"
