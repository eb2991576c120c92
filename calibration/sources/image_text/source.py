"""What pipeline.yaml says of such a set, and the set."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from pydantic import Field

from calibration.sources.arrays import sampled
from calibration.sources.image_text.encoding import encoded
from calibration.sources.image_text.records import Conversation, conversations
from calibration.sources.text import matching
from compressor.artifacts.fingerprint import digest_file, digest_json
from compressor.data.contract import Batch, Dataset, DataSource, SourceConfig, SourceContext
from compressor.errors import DataError
from compressor.models.families.transformers.processor import FILES, Processor

Array = np.ndarray[Any, Any]
IGNORED = -100
_PADDED = {"input_ids": 0, "attention_mask": 0, "mm_token_type_ids": 0, "label": IGNORED}


class ImageTextConfig(SourceConfig):
    """Where the conversations are, and how they become tokens and patches."""

    path: str
    """A JSONL file, or a pattern of such, of `{"messages": [{"role": "user", "content": [{"type": "image", "path": "a.png"},
    {"type": "text", "text": "…"}]}, {"role": "assistant", "content": "…"}]}`; relative to pipeline.yaml, images to the file."""
    processor: str
    """A checkpoint's folder, with its tokenizer, chat template and image processor; relative to pipeline.yaml."""
    sequence_length: Annotated[int, Field(ge=2, le=1 << 20)] = 2048
    """Tokens of a sample at most, those of its images among them: text is cut at the end, images are never."""
    num_samples: Annotated[int, Field(ge=1)] | None = None
    """At most so many conversations, drawn by `seed`; all of them by default."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of the draw."""


class ImageText(DataSource[ImageTextConfig]):
    """Conversations about images, for vision-language models.

    What the checkpoint's processor gives, sample by sample: `input_ids`, `attention_mask`, `mm_token_type_ids` [N, T],
    `pixel_values` [N, P, D], `image_grid_thw` [N, images, 3]; `label` [N, T] is the token after each, where the assistant says it
    last, else -100. Shorter samples are padded at the end, with zeros.
    """

    name = "image-text"
    Config = ImageTextConfig

    def problems(self, config: ImageTextConfig, context: SourceContext) -> list[str]:
        """No file, lines that are no conversations, images that are not there, no processor."""
        folder = context.base / config.processor
        found = [
            f"{config.processor}: no {name} in {folder}"
            for name in FILES
            if not (folder / name).is_file()
        ]
        files = matching(config.path, context)
        if not files:
            return [*found, f"{config.path} matches no file (looked below {context.base})"]
        return [*found, *(problem for file in files for problem in conversations(file)[1])]

    def digest(self, config: ImageTextConfig, context: SourceContext) -> str:
        """Over the config and the content of the files, of every image, and of the processor."""
        folder, files = context.base / config.processor, matching(config.path, context)
        images = sorted(
            {image for file in files for one in conversations(file)[0] for image in one.images}
        )
        parts = [
            file
            for file in sorted(folder.glob("*"))
            if file.suffix in {".json", ".jinja"} and "index" not in file.name
        ]
        return digest_json(
            {
                "version": 1,
                "config": config.model_dump(mode="json", exclude={"path", "processor"}),
                "files": [digest_file(file) for file in files],
                "images": [digest_file(image) for image in images],
                "processor": {part.name: digest_file(part) for part in parts},
            }
        )

    def load(self, config: ImageTextConfig, context: SourceContext) -> Dataset:
        """Read the conversations; images are opened when their turn comes.

        Raises:
            DataError: lines are no conversations or name images that are not there, there is none, or no processor.
        """
        every, problems = [], []
        for file in matching(config.path, context):
            found, wrong = conversations(file)
            every += found
            problems += wrong
        if problems:
            raise DataError("\n".join(problems))
        if not every:
            raise DataError(f"{config.path} holds no conversation")
        chosen = [every[place] for place in sampled(len(every), config.num_samples, config.seed)]
        return _Conversations(
            chosen, Processor((context.base / config.processor).resolve()), config.sequence_length
        )


class _Conversations(Dataset):
    """Encoded when asked for: the patches of all screens at once would be large."""

    input_names = (
        "input_ids",
        "attention_mask",
        "mm_token_type_ids",
        "pixel_values",
        "image_grid_thw",
    )
    label_name = "label"

    def __init__(self, chosen: list[Conversation], processor: Processor, longest: int) -> None:
        self.chosen, self.processor, self.longest = chosen, processor, longest

    def __len__(self) -> int:
        return len(self.chosen)

    def batch(self, indices: Array, epoch: int = 0) -> Batch:  # noqa: ARG002
        """As long as the longest of the samples."""
        samples = [self._sample(self.chosen[index]) for index in indices.tolist()]
        return {
            name: _stacked([one[name] for one in samples], _PADDED.get(name, 0))
            for name in samples[0]
        }

    def _sample(self, one: Conversation) -> dict[str, Array]:
        found = encoded(self.processor, one)
        if found["mm_token_type_ids"][self.longest :].any():
            raise DataError(
                f"{one.where}: its images end after token {self.longest}",
                remedy="raise `sequence_length`, or lower the image processor's largest size",
            )
        label_T = np.append(found.pop("label")[1:], IGNORED)
        for name in ("input_ids", "mm_token_type_ids"):
            found[name] = found[name][: self.longest]
        return {
            **found,
            "attention_mask": np.ones_like(found["input_ids"]),
            "label": label_T[: self.longest],
        }


def _stacked(arrays: list[Array], padding: int) -> Array:
    """Arrays of several sizes as one, [N, …], padded at the end of each axis."""
    sizes = np.max([array.shape for array in arrays], axis=0)
    whole = np.full((len(arrays), *sizes), padding, dtype=arrays[0].dtype)
    for row, array in enumerate(arrays):
        place: tuple[Any, ...] = (row, *(slice(size) for size in array.shape))
        whole[place] = array
    return whole
