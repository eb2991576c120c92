"""Run the app: signals, error messages and exit codes.

Exit codes: 0 success, 1 a pass failed, 2 usage or config error, 3 a gate failed,
4 a damaged artifact, 130 interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

import typer

from compressor.errors import CompressError, Interrupted


def run_app(app: typer.Typer) -> NoReturn:
    """Run the app on ``sys.argv`` and exit; user errors are printed without a traceback."""
    # libgomp reads this once, when torch loads it. Its threads spin while they wait, which
    # slows them down on a machine that other processes use too.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app()
    except CompressError as error:
        _exit_with(error)
    except KeyboardInterrupt:
        _exit_with(Interrupted("interrupted"))
    except SystemExit as exit_:
        if exit_.code == Interrupted.exit_code:  # Typer exits so on Ctrl-C, without a message
            _exit_with(Interrupted("interrupted"))
        raise
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    sys.exit(0)


def _interrupt(signum: int, frame: object) -> NoReturn:  # noqa: ARG001 - signal handler
    raise KeyboardInterrupt


def _exit_with(error: CompressError) -> NoReturn:
    from compressor.reports.console.terminal import print_error

    print_error(error)
    sys.exit(error.exit_code)
