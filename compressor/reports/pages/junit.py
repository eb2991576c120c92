"""JUnit XML of a run, for the test view of a CI system: one case a step, one a gate."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from compressor.artifacts.runs import GateResult
from compressor.reports.rows.gate_rows import COLUMNS, gate_row
from compressor.reports.rows.run import RunReport

# What XML 1.0 cannot hold, escaped or not.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def run_junit(report: RunReport) -> str:
    """Two suites, ``steps`` and ``gates``; a gate that did not hold is a failure."""
    failures = sum(not gate.passed for gate in report.gates)
    seconds = sum(row.seconds for row in report.ladder.rows)
    total = len(report.ladder.rows) + len(report.gates)
    root = _element(
        "testsuites",
        name=report.pipeline,
        tests=str(total),
        failures=str(failures),
        time=f"{seconds:.3f}",
    )
    root.append(_steps(report, seconds))
    root.append(_gates(report.pipeline, report.gates))
    return _document(root)


def gates_junit(name: str, gates: Sequence[GateResult]) -> str:
    """One suite, ``gates``, of a run that is judged by itself."""
    failures = sum(not gate.passed for gate in gates)
    root = _element(
        "testsuites", name=name, tests=str(len(gates)), failures=str(failures), time="0"
    )
    root.append(_gates(name, gates))
    return _document(root)


def _document(root: ET.Element) -> str:
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _steps(report: RunReport, seconds: float) -> ET.Element:
    rows = report.ladder.rows
    suite = _element(
        "testsuite", name="steps", tests=str(len(rows)), failures="0", time=f"{seconds:.3f}"
    )
    for row in rows:
        case = _element(
            "testcase",
            classname=f"{report.pipeline}.steps",
            name=row.step,
            time=f"{row.seconds:.3f}",
        )
        lines = [
            f"artifact {row.name}",
            *(f"{metric.name} {metric.value:.6g}" for metric in row.metrics.values()),
        ]
        out = _element("system-out")
        out.text = _clean("\n".join(lines))
        case.append(out)
        suite.append(case)
    return suite


def _gates(name: str, gates: Sequence[GateResult]) -> ET.Element:
    failures = sum(not gate.passed for gate in gates)
    suite = _element(
        "testsuite", name="gates", tests=str(len(gates)), failures=str(failures), time="0"
    )
    for gate in gates:
        row = gate_row(gate)
        case = _element(
            "testcase", classname=f"{name}.gates", name=f"{gate.step}: {gate.gate}", time="0"
        )
        if not gate.passed:
            case.append(_element("failure", type=gate.verdict, message=gate.reason))
        out = _element("system-out")
        out.text = _clean(
            "\n".join(f"{column}: {cell}" for column, cell in zip(COLUMNS, row.cells, strict=True))
        )
        case.append(out)
        suite.append(case)
    return suite


def _element(tag: str, **attributes: str) -> ET.Element:
    return ET.Element(tag, {name: _clean(value) for name, value in attributes.items()})


def _clean(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)
