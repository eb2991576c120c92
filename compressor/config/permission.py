"""Permission to run Python code that a pipeline or a model brings along.

It holds for the whole process and for the processes that it starts, since a model may be opened in
any of them.
"""

from __future__ import annotations

import os

from compressor.errors import UsageError

CODE_VARIABLE = "AUTOGLM_COMPRESS_ALLOW_CODE"
"""Environment variable: `1` where code is allowed; `--allow-code` sets it for child processes."""
_OPTION = "allow it with --allow-code"


def allow_code() -> None:
    """Allow code in this process, and in those that it starts."""
    os.environ[CODE_VARIABLE] = "1"


def code_is_allowed() -> bool:
    """Return True if code may run."""
    return os.environ.get(CODE_VARIABLE) == "1"


def require_code_allowed(what: str) -> None:
    """Check that code may run.

    Args:
        what: what runs code, such as the name of a file.

    Raises:
        UsageError: it may not.
    """
    if not code_is_allowed():
        raise UsageError(f"{what} is code, which runs with your permissions", remedy=_OPTION)
