"""Attack the program until something breaks: ``make torture``.

    python -m tests.torture [--seed 0] [--attack NAME]... [--most 500] [--seconds 600]
        [--keep FOLDER]

Prints a table (attack, tried, failures) and every failure. Exit code 1 if there are failures.
To add an attack, add a module to ``tests/torture/attacks``.
"""

from __future__ import annotations

import argparse
import math
import random
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

from tests.torture.registry import Attack, all_attacks


def main() -> int:
    """Run the campaign and print its table."""
    known = all_attacks()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--attack", action="append", choices=sorted(known))
    parser.add_argument("--most", type=int, default=None, help="cases of each attack; default: all")
    parser.add_argument("--seconds", type=float, default=math.inf, help="limit of each attack")
    parser.add_argument("--keep", type=Path, help="folder for what shows a failure")
    options = parser.parse_args()
    failures: list[str] = []
    print(f"{'attack':24}{'tried':>8}{'failures':>10}{'seconds':>10}")
    for name in options.attack or known:
        failures += _run(known[name], options)
    for failure in failures:
        print(failure)
    return 1 if failures else 0


def _run(attack: Attack, options: argparse.Namespace) -> list[str]:
    failures, tried, start = [], 0, time.monotonic()
    cases = attack.cases(random.Random(f"{options.seed} {attack.name}"))
    for tried, (name, run) in enumerate(islice(cases, options.most), 1):
        folder = Path(tempfile.mkdtemp(prefix="torture-"))
        try:
            if problem := run(folder):
                failures.append(f"{attack.name}: {name}: {problem}")
                print(failures[-1], file=sys.stderr, flush=True)
                if options.keep is not None:
                    _keep(folder, options.keep / f"{attack.name}-{tried}")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if time.monotonic() - start > options.seconds:
            break
    seconds = time.monotonic() - start
    print(f"{attack.name:24}{tried:8}{len(failures):10}{seconds:10.0f}", flush=True)
    return failures


def _keep(folder: Path, kept: Path) -> None:
    """Copy what shows a failure; the holes of a sparse file of 1 TB stay holes."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-a", "--sparse=always", folder, kept], check=True)


if __name__ == "__main__":
    sys.exit(main())
