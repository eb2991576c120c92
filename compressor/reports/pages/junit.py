"""Write JUnit XML for the test view of a CI system: one test case per step and per gate."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from compressor.artifacts.runs import GateResult
from compressor.reports.rows import gates
from compressor.reports.rows.ladder import LadderRow
from compressor.reports.rows.run import RunReport

# Characters that XML 1.0 cannot hold, escaped or not, and C1 controls, which terminals obey.
_NOT_XML = re.compile("[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def run_junit(report: RunReport) -> str:
    """Return two suites, ``steps`` and ``gates``; a gate that does not pass is a failure."""
    rows = report.ladder.rows
    seconds = f"{sum(row.seconds for row in rows):.3f}"
    root = _element(
        "testsuites",
        name=report.pipeline,
        tests=str(len(rows) + len(report.gates)),
        failures=_failures(report.gates),
        time=seconds,
    )
    steps = _element("testsuite", name="steps", tests=str(len(rows)), failures="0", time=seconds)
    steps.extend([_step_case(report.pipeline, row) for row in rows])
    root.append(steps)
    root.append(_gates_suite(report.pipeline, report.gates))
    return _document(root)


def gates_junit(name: str, results: Sequence[GateResult]) -> str:
    """Return one suite, ``gates``, with the results of the command ``gate``."""
    tests, failures = str(len(results)), _failures(results)
    root = _element("testsuites", name=name, tests=tests, failures=failures, time="0")
    root.append(_gates_suite(name, results))
    return _document(root)


def _step_case(pipeline: str, row: LadderRow) -> ET.Element:
    case = _element(
        "testcase", classname=f"{pipeline}.steps", name=row.step, time=f"{row.seconds:.3f}"
    )
    metrics = (f"{metric.name} {metric.value:.6g}" for metric in row.metrics.values())
    case.append(_output([f"artifact {row.name}", *metrics]))
    return case


def _gates_suite(name: str, results: Sequence[GateResult]) -> ET.Element:
    tests, failures = str(len(results)), _failures(results)
    suite = _element("testsuite", name="gates", tests=tests, failures=failures, time="0")
    suite.extend([_gate_case(name, result) for result in results])
    return suite


def _gate_case(name: str, result: GateResult) -> ET.Element:
    case = _element(
        "testcase", classname=f"{name}.gates", name=f"{result.step}: {result.gate}", time="0"
    )
    if not result.passed:
        case.append(_element("failure", type=result.verdict, message=result.reason))
    cells = zip(gates.COLUMNS, gates.gate_row(result).cells, strict=True)
    case.append(_output([f"{column}: {cell}" for column, cell in cells]))
    return case


def _failures(results: Sequence[GateResult]) -> str:
    return str(sum(not result.passed for result in results))


def _output(lines: Sequence[str]) -> ET.Element:
    element = _element("system-out")
    element.text = _replace_invalid("\n".join(lines))
    return element


def _element(tag: str, **attributes: str) -> ET.Element:
    return ET.Element(tag, {name: _replace_invalid(value) for name, value in attributes.items()})


def _document(root: ET.Element) -> str:
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _replace_invalid(text: str) -> str:
    """Replace controls, and what XML cannot hold, by U+FFFD."""
    return _NOT_XML.sub("\ufffd", text)
