from __future__ import annotations

from typing import Annotated

from pydantic import Field

from compressor.config.document import parse_document
from compressor.config.record import DataName, Record, StepName
from compressor.config.validation import references, validate


class Inner(Record):
    start: Annotated[float, Field(gt=0)] = 5.0
    """Where it starts."""
    data: DataName | None = None


class Outer(Record):
    epochs: int
    """How often."""
    temperature: Inner | float = 1.0
    inner: Inner = Inner()
    teacher: StepName | None = None
    sets: tuple[Inner, ...] = ()


def problems(text: str) -> list[str]:
    document = parse_document(text.encode())
    record, found = validate(Outer, document.tree, document)
    assert (record is None) == bool(found)
    return [str(problem) for problem in found]


def test_all_problems_at_once_each_with_what_to_do() -> None:
    found = problems('epochs: "7"\ninner:\n  strat: 3\nteacher: 4\n')
    assert len(found) == 3
    text = "\n".join(found)
    assert '"7" (text)' in text
    assert "expected a valid integer" in text
    assert "inner.strat: unknown key 'strat'" in text
    assert "did you mean 'start'?" in text


def test_unknown_keys_are_found_inside_unions_and_lists() -> None:
    assert any(
        "sets[0].strat: unknown key 'strat'" in text
        for text in problems("epochs: 1\nsets: [{strat: 1}]\n")
    )
    assert any("temperature" in text for text in problems("epochs: 1\ntemperature: {strat: 1}\n"))


def test_a_missing_key_tells_what_it_is_for() -> None:
    (text,) = problems("inner: {}\n")
    assert "epochs: is missing" in text
    assert "How often." in text


def test_no_coercion() -> None:
    for wrong in ("epochs: 1.0", "epochs: true", "epochs: '1'", "epochs: null", "epochs: [1]"):
        assert problems(wrong), wrong


def test_references_are_found_at_any_depth() -> None:
    record = Outer(epochs=1, inner=Inner(data="x"), teacher="t", sets=(Inner(data="y"),))
    found = {(place, reference.to, value) for place, reference, value in references(record)}
    assert found == {
        (("inner", "data"), "data", "x"),
        (("teacher",), "step", "t"),
        (("sets", 0, "data"), "data", "y"),
    }


def test_what_is_no_object_is_told_which_keys_it_has() -> None:
    [found] = problems("epochs: 7\ninner: true\n")
    assert "inner: got true (true/false)" in found
    assert "the keys data, start" in found
