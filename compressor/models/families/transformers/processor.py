"""Processor of a checkpoint: chat template, tokenizer and image processor."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compressor.data.pictures import WHITE, open_picture, without_pillow_warnings
from compressor.errors import DataError

Array = np.ndarray[Any, Any]
FILES = ("config.json", "tokenizer.json", "preprocessor_config.json")
"""Files that a processor's folder must hold, beside a chat template."""


class Processor:
    """Encode messages, as chat templates take them, into the inputs of a checkpoint."""

    def __init__(self, folder: Path) -> None:
        """Open the processor, without its part for videos, which needs another library.

        Raises:
            DataError: files are missing, transformers cannot open them, or there is no chat
                template.
        """
        self.folder = folder
        if missing := [name for name in FILES if not (folder / name).is_file()]:
            raise DataError(
                f"{folder} holds no processor for images: there is no {', '.join(missing)}",
                remedy="copy the checkpoint's files beside its weights",
            )
        try:
            self.processor = _open_processor(folder)
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

    def count_images(self, messages: Sequence[Mapping[str, Any]]) -> int:
        """Return the number of image tokens in the text of a conversation.

        Args:
            messages: each content is a list of parts, `{"type": "image"}` or `{"type": "text",
                "text": …}`.

        Raises:
            Exception: of the template.
        """
        text: str = self.processor.apply_chat_template(list(messages), tokenize=False)
        return text.count(self.processor.image_token)

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = False,
        background: str = WHITE,
    ) -> dict[str, Array]:
        """Return the model inputs of one conversation.

        Args:
            messages: each content is a text or a list of parts, `{"type": "image", "path": …}` or
                `{"type": "text", "text": …}`. Images are opened by ``open_picture``.
            add_generation_prompt: append the start of the assistant's answer.
            background: colour behind transparent pixels of images, as ``#rrggbb``.

        Returns:
            `input_ids` and `mm_token_type_ids` (0: text, 1: image), int64 [T]; `pixel_values`
            float32 [P, D], the patches of all images; `image_grid_thw` int64 [images, 3], their
            numbers in time, height and width.

        Raises:
            DataError: an image cannot be read; the message names it.
            MissingExtraError: an image is HEIC, and pillow-heif is not installed.
            Exception: of the template or the tokenizer.
        """
        with without_pillow_warnings():
            opened = [_with_pictures(message, background) for message in messages]
        arrays = self.processor.apply_chat_template(
            [opened],
            tokenize=True,
            return_dict=True,
            add_generation_prompt=add_generation_prompt,
            return_tensors="np",
        )
        ids_T = np.asarray(arrays["input_ids"])[0].astype(np.int64)
        images = self.processor.image_processor
        no_patches = np.empty((0, 3 * images.temporal_patch_size * images.patch_size**2))
        types = arrays.get("mm_token_type_ids")
        return {
            "input_ids": ids_T,
            "mm_token_type_ids": np.zeros_like(ids_T)
            if types is None
            else np.asarray(types)[0].astype(np.int64),
            "pixel_values": np.asarray(arrays.get("pixel_values", no_patches), dtype=np.float32),
            "image_grid_thw": np.asarray(
                arrays.get("image_grid_thw", np.empty((0, 3))), dtype=np.int64
            ),
        }


def _with_pictures(message: Mapping[str, Any], background: str) -> dict[str, Any]:
    """Return a message in which each path of an image is replaced by the decoded picture."""
    content = message["content"]
    if isinstance(content, str):
        return dict(message)
    parts = [
        {"type": "image", "image": open_picture(Path(part["path"]), background).image}
        if part["type"] == "image"
        else part
        for part in content
    ]
    return {**message, "content": parts}


def _open_processor(folder: Path) -> Any:
    """Return an instance of the checkpoint's processor class that accepts no video processor."""
    import transformers
    from transformers.models.auto import processing_auto

    tree = json.loads((folder / FILES[0]).read_text(encoding="utf-8"))
    names: Any = vars(processing_auto)["PROCESSOR_MAPPING_NAMES"]
    base: Any = getattr(transformers, names[tree["model_type"]])

    def check_argument(self: Any, name: str, argument: Any) -> Any:
        if name == "video_processor":
            return None
        return base.check_argument_for_proper_class(self, name, argument)

    members = {"check_argument_for_proper_class": check_argument}
    without_video = type(base.__name__, (base,), members)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    image_processors: Any = transformers.AutoImageProcessor
    images = image_processors.from_pretrained(str(folder), local_files_only=True, backend="pil")
    return without_video(images, tokenizer, None, chat_template=tokenizer.chat_template)
