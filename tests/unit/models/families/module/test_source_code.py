"""Python files of the user's: what belongs to them, and how they are imported."""

from __future__ import annotations

from pathlib import Path

import pytest

from compressor.config.permission import allow_code
from compressor.errors import ModelError, UsageError
from compressor.models.families.module.source_code import call_function, collect_code


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_the_files_that_a_file_imports_belong_to_it(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "model.py": "import os\nimport numpy\nfrom layers import a\nimport parts.inner\n",
            "layers.py": "from other import b\n",
            "other.py": "b = 1\n",
            "parts/inner.py": "from . import sibling\n",
            "parts/sibling.py": "",
            "unused.py": "",
        },
    )
    name, code = collect_code(tmp_path / "model.py")
    assert name == "model.py"
    assert list(code) == ["layers.py", "model.py", "other.py", "parts/inner.py", "parts/sibling.py"]


def test_a_file_in_a_package_brings_what_it_imports_relatively(tmp_path: Path) -> None:
    files = {
        "pkg/__init__.py": "",
        "pkg/model.py": "from .layers.block import value\nfrom . import common\n\n\n"
        "def build():\n    return value + common.more\n",
        "pkg/common.py": "more = 1\n",
        "pkg/layers/__init__.py": "",
        "pkg/layers/block.py": "from ..common import more\nvalue = 10 * more\n",
    }
    name, code = collect_code(write(tmp_path, files) / "pkg" / "model.py")
    assert name == "pkg/model.py"
    assert code == files
    allow_code()
    assert call_function(code, "pkg/model.py:build", {}) == 11


def test_two_versions_of_a_file_do_not_meet() -> None:
    allow_code()
    text = "import helper\n\n\ndef build(factor):\n    return factor * helper.value\n"
    first = {"model.py": text, "helper.py": "value = 1\n"}
    second = {"model.py": text, "helper.py": "value = 2\n"}
    assert call_function(first, "model.py:build", {"factor": 3}) == 3
    assert call_function(second, "model.py:build", {"factor": 3}) == 6
    assert call_function(first, "model.py:build", {"factor": 5}) == 5


def test_an_import_inside_a_function_finds_the_files_too() -> None:
    allow_code()
    code = {
        "model.py": "def build():\n    from helper import value\n    return value\n",
        "helper.py": "value = 7\n",
    }
    assert call_function(code, "model.py:build", {}) == 7


def test_code_runs_only_where_it_is_allowed(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    code = {"model.py": f"open({str(mark)!r}, 'w').close()\n\n\ndef build():\n    return 1\n"}
    with pytest.raises(UsageError, match=r"model.py:build is code") as error:
        call_function(code, "model.py:build", {})
    assert "--allow-code" in str(error.value.remedy)
    assert not mark.exists()
    allow_code()
    call_function(code, "model.py:build", {})
    assert mark.exists()


@pytest.mark.parametrize(
    ("code", "target", "expected"),
    [
        ({"m.py": "import absent_package\n"}, "m.py:build", "ModuleNotFoundError"),
        ({"m.py": "x = 1\n\n\ndef make():\n    pass\n"}, "m.py:build", "no function or class"),
        ({"m.py": "def build():\n    return 1 / 0\n"}, "m.py:build", r"ZeroDivisionError.*line 2"),
        ({"m.py": "def build():\n    pass\n"}, "n.py:build", "not among the Python files"),
        ({"m.py": ""}, "m.py", "names no function"),
    ],
    ids=["import", "name", "call", "file", "target"],
)
def test_errors_of_the_code_name_the_place(
    code: dict[str, str], target: str, expected: str
) -> None:
    allow_code()
    with pytest.raises(ModelError, match=expected):
        call_function(code, target, {})


def test_a_syntax_error_is_found_without_running_the_file(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("def build(:\n")
    with pytest.raises(ModelError, match="line 1: is not valid Python"):
        collect_code(tmp_path / "m.py")
