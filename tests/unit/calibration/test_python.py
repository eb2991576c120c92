"""Data source python: runs the user's code only if allowed, and checks what it returns."""

from pathlib import Path
from typing import Any

import pytest

from calibration.sources.python import Python, PythonConfig
from compressor.data.contract import SourceContext
from compressor.errors import DataError, UsageError

CODE = """\
import numpy as np
def load(n=3):
    return {'x': np.arange(n), 'label': np.arange(n) % 2}
def broken():
    return 1 / 0
def wrong():
    return 7
"""


@pytest.fixture
def context(tmp_path: Path) -> SourceContext:
    (tmp_path / "my.py").write_text(CODE)
    return SourceContext(tmp_path, allow_code=True)


def config_of(**fields: Any) -> PythonConfig:
    return PythonConfig(source="python", path="my.py", **fields)


def test_code_runs_only_if_it_is_allowed(context: SourceContext) -> None:
    config = config_of(arguments={"n": 5})
    forbidden = SourceContext(context.base)
    assert "--allow-code" in Python().problems(config, forbidden)[0]
    with pytest.raises(UsageError):
        Python().load(config, forbidden)
    samples = Python().load(config, context)
    assert (len(samples), samples.input_names, samples.label_name) == (5, ("x",), "label")


def test_the_digest_covers_the_code(context: SourceContext) -> None:
    before = Python().digest(config_of(), context)
    (context.base / "my.py").write_text(CODE + "# changed\n")
    assert Python().digest(config_of(), context) != before


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"function": "broken"}, "ZeroDivisionError"),
        ({"function": "wrong"}, "returned int"),
        ({"function": "missing"}, "AttributeError"),
        ({"label": "answer"}, "returned no array 'answer'"),
    ],
)
def test_unusable_functions_are_reported(
    context: SourceContext, fields: dict[str, str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Python().load(config_of(**fields), context)
