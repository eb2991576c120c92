"""Known causes are reported as themselves, wherever they surface."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from pathlib import Path

import pytest

from compressor.artifacts.causes import describe_unexpected, failed_child, known_cause
from compressor.artifacts.errors_from_os import writing
from compressor.artifacts.files import write_atomic
from compressor.errors import CompressError, ResourceError, StorageError, UsageError

PLACE = Path("/store")


def raised_from(outer: Exception, inner: BaseException) -> Exception:
    """Return ``outer`` as it is after ``raise outer from inner``."""
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (OSError(errno.ENOSPC, "…", "/store/x"), StorageError, "disk is full: cannot write /store"),
        (OSError(errno.EMFILE, "…", "/store/x"), StorageError, "too many open files"),
        (OSError(errno.ENAMETOOLONG, "…", "/store/x"), UsageError, "too long"),
        (PermissionError(errno.EACCES, "…", "/store/x"), StorageError, "no permission to open"),
        (RuntimeError("[enforce fail] No space left on device"), StorageError, "disk is full"),
        (MemoryError(), ResourceError, "memory ran out"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), ResourceError, "memory ran"),
        (RuntimeError("std::bad_alloc"), ResourceError, "memory ran out"),
        (raised_from(ValueError("cannot save"), OSError(errno.ENOSPC, "…")), StorageError, "full"),
    ],
)
def test_a_known_cause_is_found_in_the_chain_of_an_exception(
    error: Exception, kind: type[CompressError], words: str
) -> None:
    found = known_cause(error, PLACE)
    assert type(found) is kind
    assert words in found.what
    assert found.remedy


def test_other_errors_have_no_known_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert known_cause(ValueError("a size is wrong"), PLACE) is None
    found = describe_unexpected(ValueError("a size is wrong"))
    assert found.what == "unexpected ValueError: a size is wrong"
    (report,) = tmp_path.iterdir()
    assert "ValueError: a size is wrong" in report.read_text()
    assert str(report) in str(found)


def test_a_killed_child_and_what_it_printed_are_understood() -> None:
    child = subprocess.Popen(["sleep", "60"])
    os.kill(child.pid, signal.SIGKILL)
    found = failed_child(child.wait(), "the process that measures m", "", PLACE)
    assert isinstance(found, ResourceError)
    assert "was killed by signal 9 (Killed)" in found.what
    printed = "OSError: [Errno 28] No space left on device: 'model.engine'"
    assert isinstance(failed_child(1, "it", printed, PLACE), StorageError)
    assert failed_child(1, "it", "ValueError", PLACE) is None
    printed = "memory allocation of 12884901888 bytes failed"  # by programs in Rust, which abort
    assert isinstance(failed_child(-signal.SIGABRT, "it", printed, PLACE), ResourceError)


def test_a_folder_in_the_place_of_a_file_is_named_and_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with (
        pytest.raises(StorageError, match=r"report\.html is a folder") as caught,
        writing(tmp_path),
    ):
        write_atomic(tmp_path / "report.html", b"x")
    assert ".tmp" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
