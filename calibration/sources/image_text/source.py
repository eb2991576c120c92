"""Source ``image-text`` and its data set: conversations encoded by a checkpoint's processor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from calibration.sources.arrays import Array, draw_indices, draw_problems
from calibration.sources.files import match_files, no_match
from calibration.sources.image_text.conversations import Conversation, read_conversations
from compressor.artifacts.fingerprint import digest_file, digest_json
from compressor.data.contract import Batch, Dataset, DataSource, SourceConfig, SourceContext
from compressor.errors import DataError
from compressor.models.families.transformers.processor import FILES, Processor

_IGNORED = -100
"""Label of tokens that are not learned."""
_PADDING = {"label": _IGNORED}
"""Padding value by array; 0 by default."""


class ImageTextConfig(SourceConfig):
    """Config of the data source ``image-text``."""

    path: str
    """A JSONL file, or a glob pattern of such files; relative to pipeline.yaml. Each line is
    `{"messages": [{"role": "user", "content": [{"type": "image", "path": "a.png"}, {"type": "text",
    "text": "…"}]}, {"role": "assistant", "content": "…"}]}`; paths of images are relative to the
    file."""
    processor: str
    """A checkpoint's folder with its tokenizer, chat template and image processor; relative to
    pipeline.yaml."""
    sequence_length: Annotated[int, Field(ge=2, le=1 << 20)] = 2048
    """Largest number of tokens per sample, including those of its images. Longer texts are
    truncated at the end; images that do not fit are an error."""
    num_samples: Annotated[int, Field(ge=1)] | None = None
    """Largest number of conversations, drawn at random; all conversations by default."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the draw of `num_samples` conversations."""


class ImageText(DataSource[ImageTextConfig]):
    """Conversations about images, for vision-language models.

    The arrays of the checkpoint's processor, sample by sample: `input_ids`, `attention_mask` and
    `mm_token_type_ids` [N, T]; `pixel_values` [N, P, D]; `image_grid_thw` [N, images, 3]. `label`
    [N, T] is the next token of each in the assistant's last answer, else -100. Shorter samples are
    padded at the end with zeros.
    """

    name = "image-text"
    Config = ImageTextConfig

    def problems(self, config: ImageTextConfig, context: SourceContext) -> list[str]:
        """Return missing files, invalid lines, missing images, and fields without effect."""
        folder = context.base / config.processor
        problems = draw_problems(config)
        problems += [
            f"{config.processor}: no {name} in {folder}"
            for name in FILES
            if not (folder / name).is_file()
        ]
        files = match_files(config.path, context)
        if not files:
            problems.append(no_match(config.path, context))
        return problems + [problem for file in files for problem in read_conversations(file)[1]]

    def digest(self, config: ImageTextConfig, context: SourceContext) -> str:
        """Return a digest of the config, and of the files, all images and the processor."""
        folder, files = context.base / config.processor, match_files(config.path, context)
        images = sorted(
            {
                image
                for file in files
                for conversation in read_conversations(file)[0]
                for image in conversation.images
            }
        )
        processor_files = [
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
                "processor": {file.name: digest_file(file) for file in processor_files},
            }
        )

    def load(self, config: ImageTextConfig, context: SourceContext) -> Dataset:
        """Read the conversations; images are read when their samples are.

        Raises:
            DataError: lines are invalid, images are missing, there are no conversations, or the
                processor cannot be opened.
        """
        pool, problems = [], []
        for file in match_files(config.path, context):
            conversations, file_problems = read_conversations(file)
            pool += conversations
            problems += file_problems
        if problems:
            raise DataError("\n".join(problems))
        if not pool:
            raise DataError(f"{config.path} holds no conversation")
        indices = draw_indices(len(pool), config.num_samples, config.seed)
        processor = Processor((context.base / config.processor).resolve())
        return _Conversations([pool[index] for index in indices], processor, config.sequence_length)


class _Conversations(Dataset):
    """Conversations that are encoded on access, since the patches of all images are large."""

    input_names = (
        "input_ids",
        "attention_mask",
        "mm_token_type_ids",
        "pixel_values",
        "image_grid_thw",
    )
    label_name = "label"

    def __init__(
        self, conversations: Sequence[Conversation], processor: Processor, sequence_length: int
    ) -> None:
        self.conversations, self.processor = conversations, processor
        self.sequence_length = sequence_length

    def __len__(self) -> int:
        return len(self.conversations)

    def batch(self, indices: Array, epoch: int = 0) -> Batch:  # noqa: ARG002
        """Return samples padded to the longest of them."""
        samples = [self._sample(self.conversations[index]) for index in indices.tolist()]
        return {
            name: _stack_padded([sample[name] for sample in samples], _PADDING.get(name, 0))
            for name in samples[0]
        }

    def _sample(self, conversation: Conversation) -> dict[str, Array]:
        arrays = encode_conversation(self.processor, conversation)
        length = self.sequence_length
        if arrays["mm_token_type_ids"][length:].any():
            raise DataError(
                f"{conversation.where}: its images end after token {length}",
                remedy="raise `sequence_length`, or lower the image processor's largest size",
            )
        label_T = np.append(arrays.pop("label")[1:], _IGNORED)
        for name in ("input_ids", "mm_token_type_ids"):
            arrays[name] = arrays[name][:length]
        mask_T = np.ones_like(arrays["input_ids"])
        return {**arrays, "attention_mask": mask_T, "label": label_T[:length]}


def encode_conversation(processor: Processor, conversation: Conversation) -> dict[str, Array]:
    """Return the processor's arrays of a conversation, and ``label``.

    Returns:
        The arrays of ``Processor.encode``; ``label``, int64 [T], has the tokens of the assistant's
        last answer, or of the whole text without an answer, and -100 elsewhere.

    Raises:
        DataError: an image cannot be read, or the processor refuses the conversation.
    """
    try:
        arrays = processor.encode(conversation.messages)
        prompt = (
            processor.encode(conversation.messages[:-1], add_generation_prompt=True)
            if conversation.is_answered
            else None
        )
    except Exception as error:  # Of the chat template, the tokenizer or Pillow.
        raise DataError(
            f"{conversation.where}: the processor of {processor.folder} fails: {error}"
        ) from error
    ids_T = arrays["input_ids"]
    learned_T = arrays["mm_token_type_ids"] == 0
    if prompt is not None:
        prompt_length = len(prompt["input_ids"])
        if np.array_equal(prompt["input_ids"], ids_T[:prompt_length]):
            learned_T[:prompt_length] = False
    return {**arrays, "label": np.where(learned_T, ids_T, _IGNORED)}


def _stack_padded(arrays: Sequence[Array], padding: int) -> Array:
    """Stack arrays of different sizes, [N, …], padded at the end of each axis."""
    sizes = np.max([array.shape for array in arrays], axis=0)
    stacked = np.full((len(arrays), *sizes), padding, dtype=arrays[0].dtype)
    for row, array in enumerate(arrays):
        corner: tuple[Any, ...] = (row, *(slice(size) for size in array.shape))
        stacked[corner] = array
    return stacked
