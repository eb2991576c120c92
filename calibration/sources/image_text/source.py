"""Source ``image-text`` and its data set: conversations encoded by a checkpoint's processor."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, Field

from calibration.sources.arrays import Array, draw_indices, draw_problems
from calibration.sources.conversations.conversation import Conversation
from calibration.sources.files import file_problems, match_files
from calibration.sources.image_text.conversations import (
    image_problems,
    read_conversations,
    render_problems,
    sample_problems,
    template_messages,
)
from calibration.sources.image_text.processor_files import processor_facts, processor_problems
from calibration.sources.records.reading import layouts_digested
from calibration.sources.starter import shortened
from compressor.artifacts.fingerprint import digest_file, digest_json
from compressor.data.contract import (
    Batch,
    DataFacts,
    Dataset,
    DataSource,
    SourceConfig,
    SourceContext,
    StarterData,
    StarterInputs,
)
from compressor.data.pictures import WHITE, parse_colour
from compressor.errors import DataError, MissingExtraError
from compressor.foreign_files.real_path import real_path
from compressor.models.families.transformers.chat_templates import with_fixed_date
from compressor.models.families.transformers.images import SEGMENTS, pad_images
from compressor.models.families.transformers.planned_template import PlannedTemplate
from compressor.models.families.transformers.processor import Encoding, Processor

_IGNORED = -100
"""Label of tokens that are not learned."""


class ImageTextConfig(SourceConfig):
    """Config of the data source ``image-text``."""

    path: str
    """A file of conversations, or a glob pattern of such files; relative to pipeline.yaml. They end
    in `.jsonl`, `.ndjson`, `.json` or `.parquet`; all but parquet may be compressed by gzip. A
    record is `{"messages": [{"role": "user", "content": [{"type": "image", "path": "a.png"},
    {"type": "text", "text": "…"}]}, {"role": "assistant", "content": "…"}]}`, or has a form of
    OpenAI, Qwen-VL, ShareGPT, LLaVA or LLaMA-Factory: `image_url` with a path or a `data:` URL,
    `conversations` of `from` and `value`, `image` or `images` with `<image>` in the text. Paths of
    images are relative to the file. Nothing is downloaded."""
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
    ignore: tuple[str, ...] = ()
    """Keys of records that are not read, such as `[caption]`. Other unknown keys are an error,
    except `id`, `source`, `dataset`, `category`, `language`, `metadata`, keys that start with `_`
    or end in `_id`, and keys without a value or with a number."""
    background: Annotated[str, AfterValidator(parse_colour)] = WHITE
    """Colour behind transparent pixels: a name such as `white`, or `#rrggbb`."""


class ImageText(DataSource[ImageTextConfig]):
    """Conversations about images, for vision-language models.

    The arrays of the checkpoint's own processor, sample by sample: `input_ids` and `attention_mask`
    [N, T], the other arrays of tokens that the class takes, such as `mm_token_type_ids` [N, T], and
    those of images, such as `pixel_values` [N, patches, values] or [N, images, C, H, W]. `label`
    [N, T] is the next token of each in the assistant's last answer, else -100. Shorter samples are
    padded at the end: tokens with zeros, images with rows of NaN (-1 for integers).
    """

    name = "image-text"
    Config = ImageTextConfig

    def starter(self, model: StarterInputs) -> StarterData | None:
        """Return conversations for a model that takes images; None without its processor."""
        if model.named("pixel_values") is None or processor_problems(model.folder):
            return None
        fields = {
            "path": "conversations/*.jsonl",
            "processor": model.folder,
            **shortened(ImageTextConfig, model),
        }
        names = frozenset(facts.name for facts in model.inputs)
        return StarterData(fields, names, "JSONL files of conversations: a path or a pattern")

    def problems(self, config: ImageTextConfig, context: SourceContext) -> list[str]:
        """Return missing files, invalid records, missing images, and fields without effect.

        Of large files, the first and last records and their images are checked.
        """
        folder = context.base / config.processor
        problems = [*draw_problems(config), *processor_problems(folder)]
        template = None
        try:
            template = None if problems else PlannedTemplate(folder)
        except DataError as error:
            problems.append(str(error))
        return [
            *problems,
            *file_problems(config.path, context),
            *sample_problems(match_files(config.path, context), config.ignore, template),
        ]

    def facts(self, config: ImageTextConfig, context: SourceContext) -> DataFacts:
        """Return the inputs, the largest token that can occur, and known sizes of images."""
        return DataFacts(processor_facts(context.base / config.processor), has_labels=True)

    def digest(self, config: ImageTextConfig, context: SourceContext) -> str:
        """Return a digest of the config, and of the files, all images and the processor."""
        folder, files = context.base / config.processor, match_files(config.path, context)
        images = {
            image
            for conversation in read_conversations(files, config.ignore)
            for image in conversation.images
            if not isinstance(image, bytes)
        }
        processor_files = [
            file
            for file in sorted(folder.glob("*"))
            if file.suffix in {".json", ".jinja"} and "index" not in file.name
        ]
        return digest_json(
            {
                "version": 2,
                "config": config.model_dump(mode="json", exclude={"path", "processor"}),
                "files": [digest_file(file) for file in files],
                **layouts_digested(files),
                "images": [digest_file(image) for image in sorted(images)],
                "processor": {file.name: digest_file(file) for file in processor_files},
            }
        )

    def load(self, config: ImageTextConfig, context: SourceContext) -> Dataset:
        """Read the conversations, and decode their images once, to name all that are broken.

        The images are decoded again when their samples are read.

        Raises:
            DataError: records are invalid, images are missing or broken, there are no
                conversations, the processor cannot be opened, or its chat template refuses
                conversations or loses their images.
            MissingExtraError: a file or an image needs a library that is not installed.
        """
        pool = read_conversations(match_files(config.path, context), config.ignore)
        if not pool:
            raise DataError(f"{config.path} holds no conversation")
        indices = draw_indices(len(pool), config.num_samples, config.seed)
        drawn = [pool[index] for index in indices]
        image_problems(drawn, decode=True).raise_if_any()
        processor = Processor(real_path(context.base / config.processor))
        processor.processor.chat_template = with_fixed_date(processor.processor.chat_template)
        render_problems(processor, drawn).raise_if_any()
        return _Conversations(drawn, processor, config)


class _Conversations(Dataset):
    """Conversations that are encoded on access, since the patches of all images are large."""

    label_name = "label"

    def __init__(
        self, conversations: Sequence[Conversation], processor: Processor, config: ImageTextConfig
    ) -> None:
        self.conversations, self.processor = conversations, processor
        self.sequence_length, self.background = config.sequence_length, config.background
        self.input_names = ("input_ids", "attention_mask", *processor.names)

    def __len__(self) -> int:
        return len(self.conversations)

    def batch(self, indices: Array, epoch: int = 0) -> Batch:  # noqa: ARG002
        """Return samples padded to the longest of them."""
        samples = [self._sample(self.conversations[index]) for index in indices.tolist()]
        images = self.processor.image_inputs
        stack = {name: pad_images if name in images else _pad_tokens for name in samples[0]}
        stack["label"] = partial(_pad_tokens, padding=_IGNORED)
        return {name: stack[name]([sample[name] for sample in samples]) for name in samples[0]}

    def _sample(self, conversation: Conversation) -> dict[str, Array]:
        encoding, label_T = encode_conversation(self.processor, conversation, self.background)
        length = self.sequence_length
        if encoding.is_image[length:].any():
            raise DataError(
                f"{conversation.where}: its images end after token {length}",
                remedy="raise `sequence_length`, or lower the image processor's largest size",
            )
        ids_T = encoding.input_ids[:length]
        inputs = {
            name: array if name in self.processor.image_inputs else array[:length]
            for name, array in encoding.arrays.items()
        }
        next_T = np.append(label_T[1:], _IGNORED)[:length]
        tokens = {"input_ids": ids_T, "attention_mask": np.ones_like(ids_T)}
        return {**tokens, **inputs, "label": next_T}


def encode_conversation(
    processor: Processor, conversation: Conversation, background: str = WHITE
) -> tuple[Encoding, Array]:
    """Return the model inputs of a conversation, and the tokens to learn.

    Args:
        processor: processor of the checkpoint.
        conversation: messages with images.
        background: colour behind transparent pixels of images.

    Returns:
        The inputs, and int64 [T] with the tokens of the assistant's last answer, or of the whole
        text without an answer, and -100 elsewhere.

    Raises:
        DataError: an image cannot be read, or the processor refuses the conversation.
        MissingExtraError: an image needs a library that is not installed.
    """
    try:
        with template_messages(conversation) as messages:
            encoding = processor.encode(messages, background=background)
            prompt_length = (
                _prompt_length(processor, messages, encoding.input_ids, background)
                if conversation.is_answered
                else 0
            )
    except MissingExtraError:
        raise
    except DataError as error:  # names the image
        raise DataError(f"{conversation.where}: {error.what}", remedy=error.remedy) from error
    except Exception as error:  # of the chat template or the tokenizer
        raise DataError(
            f"{conversation.where}: the processor of {processor.folder} fails: {error}"
        ) from error
    learned_T = ~encoding.is_image
    learned_T[:prompt_length] = False
    if processor.marks_answer and conversation.is_answered:
        encoding.arrays[SEGMENTS][prompt_length:] = 1
    return encoding, np.where(learned_T, encoding.input_ids, _IGNORED)


def _prompt_length(
    processor: Processor, messages: Sequence[dict[str, Any]], ids_T: Array, background: str
) -> int:
    """Return the number of tokens before the answer, which is the last message.

    Some templates write the text before a given answer differently from a prompt, such as without
    its `<think>`. Then the answer starts where another answer in its place gives another token.
    """
    *before, answer = messages
    prompt = processor.encode(before, background=background, add_generation_prompt=True)
    prompt_length = len(prompt.input_ids)
    if np.array_equal(prompt.input_ids, ids_T[:prompt_length]):
        return prompt_length
    text = "".join(part.get("text", "") for part in answer["content"])
    other = {**answer, "content": [{"type": "text", "text": "1" if text[:1] == "0" else "0"}]}
    replaced = processor.encode([*before, other], background=background)
    return _equal_tokens(replaced.input_ids, ids_T)


def _equal_tokens(first_T: Array, second_T: Array) -> int:
    """Return the number of tokens at the start in which two texts are equal."""
    length = min(len(first_T), len(second_T))
    differing = np.flatnonzero(first_T[:length] != second_T[:length])
    return int(differing[0]) if len(differing) else length


def _pad_tokens(arrays: Sequence[Array], padding: int = 0) -> Array:
    """Stack arrays of tokens [T] of different lengths, [N, T], padded at the end."""
    padded = np.full((len(arrays), max(map(len, arrays))), padding, dtype=arrays[0].dtype)
    for row, array_T in enumerate(arrays):
        padded[row, : len(array_T)] = array_T
    return padded
