"""A checkpoint's processor: chat template, tokenizer and image processor, put together by transformers' own class."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compressor.errors import DataError, MissingExtraError

Array = np.ndarray[Any, Any]
FILES = ("config.json", "tokenizer.json", "preprocessor_config.json")
"""What a folder has to hold, beside a chat template."""


class Processor:
    """From messages, as chat templates take them, to the arrays that the checkpoint's model takes."""

    def __init__(self, folder: Path) -> None:
        """Open it, without the part for videos, which needs a library of its own.

        Raises:
            MissingExtraError: Pillow is not installed.
            DataError: transformers cannot make a processor of the folder, or it has no chat template.
        """
        if importlib.util.find_spec("PIL") is None:
            raise MissingExtraError("pillow", "looking at images", "phone-bed")
        self.folder = folder
        if missing := [name for name in FILES if not (folder / name).is_file()]:
            raise DataError(
                f"{folder} holds no processor for images: there is no {', '.join(missing)}",
                remedy="copy the checkpoint's files beside its weights",
            )
        try:
            self.processor = _opened(folder)
        except Exception as error:  # transformers raises classes of several libraries
            raise DataError(
                f"{folder} holds no processor that transformers opens: {error}",
                remedy="copy the checkpoint's files again",
            ) from error
        if not self.processor.chat_template:
            raise DataError(
                f"{folder} has no chat template",
                remedy="copy the checkpoint's chat_template.jinja beside its tokenizer",
            )

    def arrays(
        self, messages: Sequence[Mapping[str, Any]], *, ask: bool = False
    ) -> dict[str, Array]:
        """What the model takes of one conversation.

        `input_ids` and `mm_token_type_ids` (0: text, 1: image) int64 [T], `pixel_values` float32 [P, D] of the patches of all
        images, and `image_grid_thw` int64 [images, 3], their numbers in time, height and width.

        Args:
            messages: contents are lists of parts, `{"type": "image", "path": …}` or `{"type": "text", "text": …}`.
            ask: whether the assistant is to go on.

        Raises:
            Exception: of the template, the tokenizer or Pillow.
        """
        found = self.processor.apply_chat_template(
            [list(messages)],
            tokenize=True,
            return_dict=True,
            add_generation_prompt=ask,
            return_tensors="np",
        )
        ids_T = np.asarray(found["input_ids"])[0].astype(np.int64)
        images = self.processor.image_processor
        nothing = np.empty((0, 3 * images.temporal_patch_size * images.patch_size**2))
        kinds = found.get("mm_token_type_ids")
        return {
            "input_ids": ids_T,
            "mm_token_type_ids": np.zeros_like(ids_T)
            if kinds is None
            else np.asarray(kinds)[0].astype(np.int64),
            "pixel_values": np.asarray(found.get("pixel_values", nothing), dtype=np.float32),
            "image_grid_thw": np.asarray(
                found.get("image_grid_thw", np.empty((0, 3))), dtype=np.int64
            ),
        }


def _opened(folder: Path) -> Any:
    import transformers
    from transformers.models.auto import processing_auto

    tree = json.loads((folder / FILES[0]).read_text(encoding="utf-8"))
    names: Any = vars(processing_auto)["PROCESSOR_MAPPING_NAMES"]

    def accepts(self: Any, name: str, argument: Any) -> Any:
        return (
            None
            if name == "video_processor"
            else base.check_argument_for_proper_class(self, name, argument)
        )

    base: Any = getattr(transformers, names[tree["model_type"]])
    images_alone = type(base.__name__, (base,), {"check_argument_for_proper_class": accepts})
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    kinds: Any = transformers.AutoImageProcessor
    images = kinds.from_pretrained(str(folder), local_files_only=True, backend="pil")
    return images_alone(images, tokenizer, None, chat_template=tokenizer.chat_template)
