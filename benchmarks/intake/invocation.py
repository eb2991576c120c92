"""Commands of autoglm-compress in this process, with their outcomes as exceptions."""

import re
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from typer.testing import CliRunner

from cli import app
from compressor.errors import CompressError

TIMEOUT_SECONDS = 300
_UNEXPECTED = re.compile(r"\(\S+\) failed: \w+: ")
"""A step that ended by an exception of a library's, whose traceback went to a file."""


class Refused(Exception):  # noqa: N818
    """The program ended with an error message."""


class Crashed(Exception):  # noqa: N818
    """The program ended with a traceback, or a step by an exception that is not the program's."""


class OutOfTime(BaseException):
    """An action took too long; no handler of errors takes it for one of its own."""


def invoke(*arguments: object) -> str:
    """Run a command in this process, and return what it printed."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    error = result.exception
    if isinstance(error, CompressError) and _UNEXPECTED.search(error.what):
        raise Crashed(" ".join(error.what.split())[:300])
    if isinstance(error, CompressError):
        raise Refused(" ".join(f"{error.what}".split())[:300])
    if error is not None and not isinstance(error, SystemExit):
        lines = traceback.format_exception(error)
        raise Crashed(f"{type(error).__name__}: {error}"[:300] + "".join(lines[-3:]))
    if result.exit_code:
        raise Refused(f"exit {result.exit_code}: {result.output[-300:]}")
    return result.output


def outputs_of(folder: Path, step: str) -> Path:
    """Return the newest artifact of a kind of step."""
    found = sorted((folder / "artifacts").glob(f"{step}-*"), key=lambda path: path.stat().st_mtime)
    return found[-1]


def attempt(action: Callable[[], str]) -> dict[str, str]:
    """Return the outcome of one technique on one class."""
    started = time.process_time()
    signal.signal(signal.SIGPROF, stop_action)
    signal.setitimer(signal.ITIMER_PROF, TIMEOUT_SECONDS)
    try:
        outcome, detail = "ok", action()
    except Refused as error:
        outcome, detail = "refused", str(error)
    except OutOfTime:
        outcome, detail = "crashed", f"not done after {TIMEOUT_SECONDS} s of CPU time"
    except Exception as error:  # noqa: BLE001  the table lists it
        outcome, detail = "crashed", f"{type(error).__name__}: {error}"[:1500]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return {"outcome": outcome, "detail": detail, "seconds": f"{time.process_time() - started:.0f}"}


def stop_action(*_: object) -> None:
    """End an action that takes too long."""
    raise OutOfTime
