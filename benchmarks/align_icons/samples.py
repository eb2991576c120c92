"""Icons and their names, as benchmarks/align_icons/__main__.py has encoded them."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def load(split: str, digest: str) -> dict[str, np.ndarray]:  # noqa: ARG001 - a part of the id
    """Return a pair for each icon and language; the label is the first pair of the icon."""
    file = np.load(Path(__file__).with_name("icons.npz"))
    vectors, concepts = file[f"{split}_vectors"], file[f"{split}_concepts"]
    icons, languages = np.divmod(np.arange(2 * len(concepts)), 2)
    return {
        "image_vector": vectors[icons],
        "input_ids": (2 * concepts[icons] + languages)[:, None],
        "label": 2 * icons,
    }
