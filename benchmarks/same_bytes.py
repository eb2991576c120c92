"""Compare the model bytes of two stores, step by step: did a change of the code change a model?

Run the same pipeline with both versions, each into a store of its own, then:

    python benchmarks/same_bytes.py STORE_BEFORE STORE_AFTER

Prints one row for each step, and ends with code 1 if a step's files differ. Ids may differ: they
cover names and versions as well.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from compressor.artifacts.artifact import open_artifact
from compressor.artifacts.runs import find_run


def model_files(store: Path) -> dict[str, dict[str, str]]:
    """Return step to {file: sha256} of the last run of a store."""
    folder, record = find_run(store)
    root = folder.parent.parent
    manifests = {step.name: open_artifact(root / step.artifact).manifest for step in record.steps}
    return {
        step: {name: entry.sha256 for name, entry in manifest.files.items()}
        for step, manifest in manifests.items()
    }


def main() -> int:
    """Print the comparison; return 1 if any step differs or is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    options = parser.parse_args()
    before, after = model_files(options.before), model_files(options.after)
    different = 0
    for step in dict.fromkeys((*before, *after)):
        old, new = before.get(step), after.get(step)
        if old is None or new is None:
            verdict = "missing in one store"
        elif old == new:
            print(f"{step}: {len(old)} files, the same bytes")
            continue
        else:
            changed = [name for name in {*old, *new} if old.get(name) != new.get(name)]
            verdict = f"different: {', '.join(sorted(changed))}"
        different += 1
        print(f"{step}: {verdict}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
