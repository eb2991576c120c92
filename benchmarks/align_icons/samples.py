"""Icons and their names, as benchmarks/align_icons/__main__.py has encoded them."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def load(split: str, digest: str) -> dict[str, np.ndarray]:  # noqa: ARG001 - a part of the id
    """Return the pairs of an icon and a name; the label is the first pair of the icon."""
    file = np.load(Path(__file__).with_name("icons.npz"))
    icons, names = file[f"{split}_icons"], file[f"{split}_names"]
    _, first, inverse = np.unique(icons, return_index=True, return_inverse=True)
    return {
        "image_vector": file["vectors"][icons],
        "input_ids": names[:, None],
        "label": first[inverse],
    }
