from __future__ import annotations

from typing import Annotated

from pydantic import AliasChoices, Field

from compressor.config.document import parse_document
from compressor.config.record import DataName, Record, StepName
from compressor.config.validation import references, validate


class Inner(Record):
    start: Annotated[float, Field(gt=0)] = 5.0
    """Start value."""
    data: DataName | None = None


class Outer(Record):
    epochs: int
    """Number of epochs."""
    temperature: Inner | float = 1.0
    inner: Inner = Inner()
    teacher: StepName | None = None
    sets: tuple[Inner, ...] = ()


def problems(text: str) -> list[str]:
    document = parse_document(text.encode())
    _, problems = validate(Outer, document.tree, document)
    return [str(problem) for problem in problems]


def test_all_problems_are_listed_each_with_a_remedy() -> None:
    texts = problems('epochs: "7"\ninner:\n  strat: 3\nteacher: 4\n')
    assert len(texts) == 3
    text = "\n".join(texts)
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


def test_a_mapping_in_place_of_a_name_is_answered_with_the_line_to_write() -> None:
    [text] = problems("epochs: 1\ninner: {data: {data: train}}\n")
    assert "expected the name of a set under `data:`" in text
    assert "write `data: train`" in text


def test_unknown_keys_alone_leave_a_record_without_them() -> None:
    text = "epochs: 7\ninner: {start: 2.0, strat: 3}\nsets: [{start: 3.0}, {more: {a: 1}}]\n"
    document = parse_document(text.encode())
    record, found = validate(Outer, document.tree, document)
    assert record == Outer(epochs=7, inner=Inner(start=2.0), sets=(Inner(start=3.0), Inner()))
    assert len(found) == 2
    document = parse_document(text.replace("7", "seven").encode())
    assert validate(Outer, document.tree, document)[0] is None


def test_a_missing_key_shows_its_description() -> None:
    (text,) = problems("inner: {}\n")
    assert "epochs: is missing" in text
    assert "Number of epochs." in text


def test_values_of_other_types_are_not_converted() -> None:
    for line in ("epochs: 1.0", "epochs: true", "epochs: '1'", "epochs: null", "epochs: [1]"):
        assert problems(line), line


def test_references_are_found_at_any_depth() -> None:
    record = Outer(epochs=1, inner=Inner(data="x"), teacher="t", sets=(Inner(data="y"),))
    targets = {(path, reference.to, value) for path, reference, value in references(record)}
    assert targets == {
        (("inner", "data"), "data", "x"),
        (("teacher",), "step", "t"),
        (("sets", 0, "data"), "data", "y"),
    }


def test_the_error_of_a_scalar_lists_the_keys_of_the_mapping() -> None:
    [text] = problems("epochs: 7\ninner: true\n")
    assert "inner: got true (true/false)" in text
    assert "the keys data, start" in text


def test_two_names_of_one_key_are_refused_as_such() -> None:
    class Renamed(Record):
        decay: Annotated[float, Field(validation_alias=AliasChoices("decay", "average"))] = 0.5

    document = parse_document(b"decay: 0.1\naverage: 0.2\n")
    _, problems = validate(Renamed, document.tree, document)
    (problem,) = problems
    assert problem.what == "'average' and 'decay' are two names of one key"
    assert problem.line == 2
