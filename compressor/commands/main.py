"""Run the app: error messages and exit codes, whatever happens.

Exit codes: 0 success, 1 a pass failed, 2 usage or config error, 3 a gate failed,
4 a damaged artifact, 130 interrupted (Ctrl-C or SIGTERM).
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import typer

from compressor import interrupts
from compressor.artifacts.fingerprint import observed_reads
from compressor.errors import CompressError, Interrupted
from compressor.reports.console.reading import ReadingDisplay


def run_app(app: typer.Typer) -> NoReturn:
    """Run the app on ``sys.argv`` and exit; no error reaches the user as a traceback."""
    # libgomp reads this once, when torch loads it. Its threads spin while they wait, which
    # slows them down on a machine that other processes use too.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    code = _run(app)
    _flush()
    interrupts.ignore_signals()
    sys.exit(code)


def _run(app: typer.Typer) -> int:
    """Run the app and return the exit code; errors are printed."""
    try:
        with interrupts.raised(), observed_reads(ReadingDisplay()):
            app()
    except CompressError as error:
        return _report(Interrupted("interrupted") if _was_lost(error) else error)
    except KeyboardInterrupt:
        return _report(Interrupted("interrupted"))
    except SystemExit as exit_:  # Typer exits so, with 130 and no message on Ctrl-C
        if exit_.code == Interrupted.exit_code or interrupts.requested():
            return _report(Interrupted("interrupted"))
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except Exception as error:  # noqa: BLE001  whatever else there is, a user sees one line
        return _report(_as_ours(error))
    return 0


def _was_lost(error: CompressError) -> bool:
    """Return True if an error is what somebody made of an interrupt."""
    return interrupts.requested() and not isinstance(error, Interrupted)


def _as_ours(error: Exception) -> CompressError:
    from compressor.artifacts.causes import describe_unexpected

    return Interrupted("interrupted") if interrupts.requested() else describe_unexpected(error)


def _report(error: CompressError) -> int:
    """Print an error and return its exit code."""
    from compressor.reports.console.terminal import print_error

    print_error(error)
    return error.exit_code


def _flush() -> None:
    """Write what is still buffered; a reader that has left is no error of ours."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (BrokenPipeError, ValueError):  # the reader has left; or the stream is closed
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1 if stream is sys.stdout else 2)
