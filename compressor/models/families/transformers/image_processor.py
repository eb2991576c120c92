"""Image processor of a checkpoint: pictures to the arrays that its class takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compressor.models.families.transformers.pretrained import from_pretrained


def open_image_processor(folder: Path) -> Any:
    """Open the image processor that lies beside a checkpoint, in its variant that Pillow runs.

    Raises:
        DataError: transformers cannot open it.
    """
    from transformers import AutoImageProcessor

    classes: Any = AutoImageProcessor
    return from_pretrained(classes, folder, "image processor", backend="pil")
