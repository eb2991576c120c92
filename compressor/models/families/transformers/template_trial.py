"""``python -m …template_trial``: render a chat template in a process that can be ended.

Templates come with foreign models. Jinja's sandbox keeps them from the system, not from loops
without end or numbers of a billion digits, which no thread can interrupt. So a template is rendered
once in a child with limits before it is rendered here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from compressor.errors import DataError
from compressor.foreign_files.trials import limit_resources, trial_problem
from compressor.models.families.transformers.template_environment import environment

_USER, _ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
_PARTS = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}
_CONVERSATIONS = ([_USER, _ANSWER], [{"role": "system", "content": "s"}, _USER], [_PARTS, _ANSWER])


def check_ends(template: str, tokens: Mapping[str, str], folder: Path) -> None:
    """Check that a chat template ends, and takes little memory.

    Args:
        template: the template.
        tokens: special tokens by the names that it uses.
        folder: its folder, for messages.

    Raises:
        DataError: it does not.
    """
    if problem := _problem(template, tuple(tokens.items())):
        raise DataError(
            f"{folder}: the chat template {problem}",
            remedy="copy the checkpoint's chat template again, or correct it",
        )


@lru_cache(maxsize=64)
def _problem(template: str, tokens: tuple[tuple[str, str], ...]) -> str | None:
    return trial_problem(__name__, json.dumps([template, tokens]).encode())


def main() -> None:
    """Render the template of stdin for a few conversations; its errors are no concern here."""
    limit_resources()
    text, tokens = json.load(sys.stdin)
    for messages in _CONVERSATIONS:
        try:
            variables = {**dict(tokens), "messages": messages, "tools": None, "documents": None}
            for prompt in (False, True):
                environment().from_string(text).render(add_generation_prompt=prompt, **variables)
        except MemoryError:
            sys.exit(1)
        except Exception:  # noqa: BLE001, S112  reported where the template is used
            continue


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        main()
