"""Contact sheet: ``python -m calibration.sources.phone_bed --split test -o sheet.png``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from calibration.sources.phone_bed.source import PhoneBed, PhoneBedConfig
from compressor.data.contract import SourceContext


def main() -> None:
    """Write a sheet of screens, and print their commands and labels."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--split", choices=("train", "validation", "test"), default="test")
    parser.add_argument("-o", "--output", type=Path, default=Path("sheet.png"))
    parser.add_argument("--columns", type=int, default=6)
    parser.add_argument("--rows", type=int, default=4)
    options = parser.parse_args()
    from PIL import Image

    config = PhoneBedConfig(source="phone-bed", split=options.split)
    dataset = PhoneBed().load(config, SourceContext(Path()))
    columns = options.columns
    batch = dataset.batch(np.arange(columns * options.rows, dtype=np.int64))
    screens = np.pad(batch["screen"], ((0, 0), (0, 0), (2, 2), (2, 2))).transpose(0, 2, 3, 1)
    rows = [
        np.concatenate(screens[row * columns : (row + 1) * columns], axis=1)
        for row in range(options.rows)
    ]
    Image.fromarray(np.concatenate(rows)).save(options.output)
    names = dataset.class_names() or ()
    for row, (tokens, label) in enumerate(zip(batch["tokens"], batch["label"], strict=True)):
        text = bytes((tokens[tokens > 0] - 1).astype(np.uint8)).decode() or "(spoken)"
        sys.stdout.write(f"{row:3} {names[label]:8} {text}\n")


if __name__ == "__main__":
    main()
