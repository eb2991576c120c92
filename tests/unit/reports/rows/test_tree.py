from pathlib import Path

from compressor.artifacts.artifact import Artifact
from compressor.reports.rows.ladder import LadderInput, build_ladder
from compressor.reports.rows.tree import tree_rows
from tests.support.reports import manifest


def lines_of(parents: dict[str, str | None]) -> list[str]:
    steps = [
        LadderInput(
            name, Artifact(Path(name), manifest(name)), cached=False, parent=parent, runtime="torch"
        )
        for name, parent in parents.items()
    ]
    return [row.lines + row.row.step for row in tree_rows(build_ladder(steps))]


def test_a_chain_stays_in_one_column() -> None:
    assert lines_of({"source": None, "teacher": "source", "onnx": "teacher"}) == [
        "source",
        "teacher",
        "onnx",
    ]


def test_branches_stand_together_whatever_the_order_of_the_run() -> None:
    parents = {"a": None, "onnx": "a", "int8": "a", "engine": "onnx", "int8-onnx": "int8"}
    assert lines_of(parents) == ["a", "├─ onnx", "│  engine", "└─ int8", "   int8-onnx"]


def test_a_branch_of_a_branch_is_indented_again() -> None:
    parents = {"a": None, "b": "a", "c": "b", "d": "b", "e": "a"}
    assert lines_of(parents) == ["a", "├─ b", "│  ├─ c", "│  └─ d", "└─ e"]


def test_a_step_whose_parent_is_not_in_the_run_is_a_root() -> None:
    assert lines_of({"onnx": "elsewhere", "engine": "onnx"}) == ["onnx", "engine"]
