"""Change one byte of one file of a store, and read it with every command."""

from __future__ import annotations

import random
import re
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

from tests.support.forked import Outcome
from tests.torture.registry import Attack, Case
from tests.torture.stores import run_in, template

COMMANDS: tuple[tuple[str, ...], ...] = (
    ("verify", "artifacts"),
    ("gate", "artifacts", "--against", "baseline"),
    ("gate", "baseline", "--against", "artifacts", "--json"),
    ("history",),
    ("history", "--metric", "latency_p50_ms"),
    ("report",),
    ("show", "artifacts"),
    ("show", "FIRST"),
    ("compare", "FIRST", "baseline/SECOND"),
    ("archive", "FIRST", "new.tar.zst"),
    ("gc", "--dry-run"),
    ("plan", "pipeline.yaml"),
)
FILES = (
    "toy-*/manifest.json",
    "toy-*/reports/*",
    "toy-*/model/*",
    "toy-*/logs/*",
    "toy-*/report.html",
    "runs/*/*",
    ".locks/*",
)
_TIMES = re.compile(r"\d\d:\d\d:\d\d|\d{4}-\d\d-\d\dT[0-9:+]+|[\d.]+ (?:m?s|GB free)\b")
_REPLACEMENTS = {
    "a digit": (rb"[0-9]", b"7"),
    "a letter": (rb"[a-z]", b"q"),
    "a bracket": (rb"[\[\]{}]", b" "),
    "a quote": (rb'"', b"'"),
    "a comma": (rb"[,:]", b";"),
}


@cache
def intact(words: tuple[str, ...]) -> Outcome:
    """Return the outcome of a command on an undamaged store."""
    with tempfile.TemporaryDirectory(prefix="torture-intact-") as folder:
        return _run(_home(Path(folder)), words)


def _home(folder: Path) -> Path:
    """Fill a folder with a store, and an equal one as its baseline."""
    shutil.copytree(template("built"), folder, dirs_exist_ok=True)
    shutil.copytree(template("built") / "artifacts", folder / "baseline")
    return folder


def _run(home: Path, words: tuple[str, ...]) -> Outcome:
    second = next(iter(sorted((home / "baseline").glob("toy-*")))).name
    return run_in(home, tuple(word.replace("SECOND", second) for word in words))


def flip(
    pattern: str, kind: str, words: tuple[str, ...], source: random.Random, home: Path
) -> str | None:
    """Damage one byte of one file that fits a pattern; return what is wrong with a command."""
    _home(home)
    files = (home / "artifacts").glob(pattern)
    file = source.choice(sorted(path for path in files if path.is_file()))
    content = bytearray(file.read_bytes())
    position = _position(bytes(content), kind, source)
    if position is None:
        return None
    if kind in _REPLACEMENTS and content[position] != _REPLACEMENTS[kind][1][0]:
        content[position] = _REPLACEMENTS[kind][1][0]
    else:
        content[position] ^= 1 << source.randrange(8)
    file.write_bytes(content)
    expected, outcome = intact(words), _run(home, words)
    where = f"{file.relative_to(home)}, byte {position}"
    if "Traceback" in outcome.printed or "unexpected" in outcome.printed:
        return f"{where}: {outcome.printed[-400:]}"
    if outcome.code == expected.code and _stable(outcome.printed) == _stable(expected.printed):
        return None  # the command does not need the file
    if outcome.code == 4 and (file.name in outcome.printed or file.parent.name in outcome.printed):
        return None
    if outcome.code == 0 and words[0] in {"gc", "plan", "gate"} and "damaged" in outcome.printed:
        return None  # said, and left out
    return f"{where}: exit code {outcome.code}: {outcome.printed[-400:]}"


def _stable(text: str) -> str:
    """Return what a command prints without times, and without the padding of columns."""
    return " ".join(_TIMES.sub("…", text).split())


def _position(content: bytes, kind: str, source: random.Random) -> int | None:
    if not content:
        return None
    if kind == "the first":
        return 0
    if kind == "the last":
        return len(content) - 1
    if kind == "any":
        return source.randrange(len(content))
    found = [match.start() for match in re.finditer(_REPLACEMENTS[kind][0], content)]
    return source.choice(found) if found else None


def _cases(source: random.Random) -> Iterator[Case]:
    kinds = ("the first", "the last", "any", *_REPLACEMENTS)
    points = [(pattern, kind, words) for pattern in FILES for kind in kinds for words in COMMANDS]
    source.shuffle(points)
    for pattern, kind, words in points:
        run = partial(flip, pattern, kind, words, random.Random(source.random()))
        yield f"{kind} byte of {pattern}, {' '.join(words)}", run


ATTACK = Attack(
    "byte flips",
    "one byte of a file in a store changes: a command does not need the file and prints the same, "
    "or ends with 4 and names it",
    _cases,
)
