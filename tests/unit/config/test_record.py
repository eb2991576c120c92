"""Renamed fields: both names are read, and ids stay those of the first name."""

from typing import Annotated

import pytest
from pydantic import AliasChoices, Field, ValidationError

from compressor.config.record import LeftOutOfIds, Record, with_former_names


class Inner(Record):
    decay: Annotated[float, Field(validation_alias=AliasChoices("decay", "average"))] = 0.9
    steps: int = 3


class Outer(Record):
    inner: Inner = Inner()
    several: tuple[Inner, ...] = ()
    name: str = "a"


def dump(record: Record) -> dict:
    return with_former_names(record, record.model_dump(mode="json"))


def test_both_names_are_read_and_dump_to_the_first_name() -> None:
    new = Outer.model_validate_json('{"inner": {"decay": 0.5}, "several": [{"decay": 0.1}]}')
    old = Outer.model_validate_json('{"inner": {"average": 0.5}, "several": [{"average": 0.1}]}')
    assert new == old
    assert (
        dump(new)
        == dump(old)
        == {
            "inner": {"average": 0.5, "steps": 3},
            "several": [{"average": 0.1, "steps": 3}],
            "name": "a",
        }
    )


class Grown(Record):
    old: int = 1
    new: Annotated[float, Field(ge=0), LeftOutOfIds()] = 0.5


def test_a_field_that_was_added_later_is_left_out_at_its_default() -> None:
    assert dump(Grown()) == dump(Grown(new=0.5)) == {"old": 1}
    assert dump(Grown(new=0.4)) == {"old": 1, "new": 0.4}


def test_replaced_values_are_kept() -> None:
    record = Outer(name="set")
    tree = record.model_dump(mode="json") | {"name": "digest"}
    assert with_former_names(record, tree)["name"] == "digest"


def test_both_names_at_once_are_refused_under_the_name_that_was_written() -> None:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate_json('{"inner": {"decay": 0.5, "average": 0.5}}')
    assert caught.value.errors()[0]["loc"] == ("inner", "average")
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate_json('{"inner": {"average": "much"}}')
    assert caught.value.errors()[0]["loc"] == ("inner", "average")
