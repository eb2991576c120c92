"""Processor of a checkpoint: chat template, tokenizer and image processor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from compressor.data.pictures import WHITE, open_picture, without_pillow_warnings
from compressor.errors import DataError
from compressor.foreign_files.json_files import read_json_object
from compressor.foreign_files.libraries import library_errors
from compressor.models.checkpoint.layout import CONFIG
from compressor.models.families.transformers.chat_templates import (
    load_tokenizer,
    special_tokens,
)
from compressor.models.families.transformers.images import SEGMENTS, TOKEN_TYPES
from compressor.models.families.transformers.picture_cache import (
    CachedImageProcessor,
    picture_digest,
)
from compressor.models.families.transformers.pretrained import from_pretrained
from compressor.models.families.transformers.template_trial import check_ends

Array = np.ndarray[Any, Any]
TOKENIZER, PROCESSOR, IMAGES = "tokenizer.json", "processor_config.json", "preprocessor_config.json"
_VIDEO_LIBRARIES = ("num2words",)
"""Libraries that a processor's class requires for videos alone, by the name of its module's
global."""
_PROBE_SIZE = (64, 48)
"""Width and height of the image with which the arrays of a processor are found out."""

_REMEDY = "copy the checkpoint's files again"
_OPTIONS = {"return_tensors": "np", "return_mm_token_type_ids": True}


class _NoVideos(dict[str, Any]):
    """Stand-in for a processor of videos, with the attributes that are read without any video."""

    num_frames = fps = None
    model_input_names = ()


@dataclass(frozen=True, slots=True)
class Encoding:
    """The model inputs of one conversation."""

    input_ids: Array
    """int64 [T]."""
    is_image: Array
    """True for the tokens that stand for images, bool [T]."""
    arrays: dict[str, Array]
    """The other inputs of the class: those of tokens int64 [T], and those of images with the
    patches, the images or the conversation as first axis, float32 or int64."""
    pictures: tuple[bytes, ...] = ()
    """Digest of each picture, in the order of the conversation."""


class Processor:
    """Encode messages, as chat templates take them, into the inputs of a checkpoint.

    Attributes:
        folder: the checkpoint.
        processor: the processor of transformers.
        token_inputs: names of the arrays with a value for each token, beside the tokens.
        image_inputs: dtype and shape behind the first axis of each array of images, by name.
        marks_answer: True if ``token_type_ids`` tells a prompt from its answer.
        probe: the encoding of a black image and a word.
    """

    def __init__(self, folder: Path, *, cache_bytes: int = 0) -> None:
        """Open the processor, without its part for videos, which needs another library.

        Args:
            folder: the checkpoint.
            cache_bytes: bytes of the arrays of pictures that are kept for pictures sent again.

        Raises:
            DataError: files are missing, transformers cannot open them or encode an image, or
                there is no chat template.
        """
        self.folder = folder
        if missing := missing_files(folder):
            raise DataError(
                f"{folder} holds no processor for images: there is no {', '.join(missing)}",
                remedy="copy the checkpoint's files beside its weights",
            )
        tree = read_json_object(folder / CONFIG, DataError, remedy=_REMEDY)
        with library_errors(
            f"{folder} holds no processor that transformers opens", DataError, _REMEDY
        ):
            self._accepted = _forward_parameters(tree)
            self.processor = _open_processor(folder, tree)
        if not self.processor.chat_template:
            raise DataError(
                f"{folder} has no chat template",
                remedy="copy the checkpoint's chat_template.jinja beside its tokenizer",
            )
        self._find_arrays()
        if cache_bytes:
            images = self.processor.image_processor
            self.processor.image_processor = CachedImageProcessor(images, cache_bytes)

    def _find_arrays(self) -> None:
        """Encode one image, to know the names, dtypes and shapes of the arrays."""
        from PIL import Image

        image = Image.new("RGB", _PROBE_SIZE)
        with library_errors(
            f"the processor of {self.folder} cannot encode an image", DataError, _REMEDY
        ):
            text = f"{self.processor.image_token} a"
            results = self.processor(text=[text], images=[[image]], **_OPTIONS)
            arrays, is_image_T = self._selected(results)
        shape = arrays["input_ids"].shape
        self.token_inputs = tuple(
            name for name, array in arrays.items() if array.shape == shape and name != "input_ids"
        )
        self.image_inputs = {
            name: (array.dtype, array.shape[1:])
            for name, array in arrays.items()
            if array.shape != shape
        }
        self.marks_answer = SEGMENTS in self.token_inputs and not np.array_equal(
            arrays[SEGMENTS][0] == 1, is_image_T
        )
        self.probe = Encoding(
            arrays.pop("input_ids")[0],
            is_image_T,
            {name: a[0] if name in self.token_inputs else a for name, a in arrays.items()},
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the inputs beside tokens: those of tokens, then those of images."""
        return (*self.token_inputs, *self.image_inputs)

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
        template_options: Mapping[str, Any] = MappingProxyType({}),
    ) -> Encoding:
        """Return the model inputs of one conversation.

        Args:
            messages: each content is a text or a list of parts, `{"type": "image", "path": …}`,
                `{"type": "image", "image": …}` with a picture of Pillow, or `{"type": "text",
                "text": …}`. The files of images are opened by ``open_picture``.
            add_generation_prompt: append the start of the assistant's answer.
            background: colour behind transparent pixels of images, as ``#rrggbb``.
            template_options: variables of the chat template, such as ``tools``.

        Raises:
            DataError: an image cannot be read; the message names it.
            MissingExtraError: an image is HEIC, and pillow-heif is not installed.
            Exception: of the template or the tokenizer.
        """
        with without_pillow_warnings():
            opened = [_with_pictures(message, background) for message in messages]
        options = {**template_options, "add_generation_prompt": add_generation_prompt}
        arrays, is_image_T = self._run(opened, options)
        ids_T = arrays["input_ids"][0]
        of_tokens = {
            name: arrays[name][0] if name in arrays else np.zeros_like(ids_T)
            for name in self.token_inputs
        }
        of_images = {
            name: arrays.get(name, np.empty((0, *shape), dtype))
            for name, (dtype, shape) in self.image_inputs.items()
        }
        pictures = tuple(picture_digest(picture) for picture in _pictures(opened))
        return Encoding(ids_T, is_image_T, of_tokens | of_images, pictures)

    def _run(
        self, messages: list[dict[str, Any]], options: Mapping[str, Any]
    ) -> tuple[dict[str, Array], Array]:
        """Return the arrays that the class takes, and the tokens that stand for images, [T]."""
        results = self.processor.apply_chat_template(
            [messages],
            tokenize=True,
            return_dict=True,
            processor_kwargs=dict(_OPTIONS),
            **options,
        )
        return self._selected(results)

    def _selected(self, results: Mapping[str, Any]) -> tuple[dict[str, Array], Array]:
        """Return the arrays of ``_run`` from all results of the processor."""
        arrays = {
            name: _converted(results[name])
            for name in results
            if name in self._accepted and name not in {"attention_mask", "labels"}
        }
        return arrays, self._image_tokens(results, arrays["input_ids"][0])

    def _image_tokens(self, results: Mapping[str, Any], ids_T: Array) -> Array:
        """Return True for the tokens that stand for images, [T]."""
        types = results.get(TOKEN_TYPES, results.get(SEGMENTS))
        token_id = getattr(self.processor, "image_token_id", None)
        is_image_T: Array = ids_T == token_id
        if types is not None and np.any(np.asarray(types)[0] == 1):
            is_image_T = np.asarray(types)[0] == 1
        return is_image_T


def missing_files(folder: Path) -> list[str]:
    """Return the names of files that a processor's folder lacks, beside a chat template."""
    missing = [name for name in (CONFIG, TOKENIZER) if not (folder / name).is_file()]
    if not any((folder / name).is_file() for name in (IMAGES, PROCESSOR)):
        missing.append(IMAGES)
    return missing


def _converted(value: Any) -> Array:
    """Return an array as float32 or int64."""
    array = np.asarray(value)
    result: Array = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
    return result


def _with_pictures(message: Mapping[str, Any], background: str) -> dict[str, Any]:
    """Return a message in which each path of an image is replaced by the decoded picture."""
    content = message["content"]
    if isinstance(content, str):
        return dict(message)
    parts = [
        {"type": "image", "image": open_picture(Path(part["path"]), background).image}
        if part["type"] == "image" and "path" in part
        else part
        for part in content
    ]
    return {**message, "content": parts}


def _pictures(messages: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
    """Yield the pictures of a conversation."""
    for message in messages:
        if not isinstance(message["content"], str):
            yield from (part["image"] for part in message["content"] if part["type"] == "image")


def _forward_parameters(tree: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of what the checkpoint's class takes."""
    import inspect

    import transformers
    from transformers.models.auto import modeling_auto

    classes: Any = vars(modeling_auto)["MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES"]
    name = next(iter(tree.get("architectures") or [classes[tree["model_type"]]]))
    return frozenset(inspect.signature(getattr(transformers, name).forward).parameters)


def _open_processor(folder: Path, tree: Mapping[str, Any]) -> Any:
    """Return an instance of the checkpoint's processor class that accepts no video processor."""
    import transformers

    base = _processor_class(folder, tree)
    stand_in = _NoVideos()

    def check_argument(self: Any, name: str, argument: Any) -> Any:
        if argument is stand_in:
            return None
        return base.check_argument_for_proper_class(self, name, argument)

    members = {"check_argument_for_proper_class": check_argument, "__init__": base.__init__}
    without_video: Any = type(base.__name__, (base,), members)
    tokenizer = load_tokenizer(folder)
    image_processors: Any = transformers.AutoImageProcessor
    images = from_pretrained(image_processors, folder, "image processor", backend="pil")
    parts = {"tokenizer": tokenizer, "image_processor": images}
    arguments = [parts.get(name, stand_in) for name in without_video.get_attributes()]
    fields, options = base.get_processor_dict(str(folder), local_files_only=True)
    with _without_video_libraries(base):
        processor = without_video.from_args_and_dict(arguments, fields, **options)
    processor.chat_template = processor.chat_template or tokenizer.chat_template
    if isinstance(processor.chat_template, str):
        check_ends(processor.chat_template, special_tokens(folder), folder)
    return processor


def _processor_class(folder: Path, tree: Mapping[str, Any]) -> Any:
    """Return the class that transformers has for the model, or that a config names."""
    import transformers
    from transformers.models.auto import processing_auto

    names: Any = vars(processing_auto)["PROCESSOR_MAPPING_NAMES"]
    name = names.get(tree["model_type"])
    for file in (PROCESSOR, IMAGES, "tokenizer_config.json"):
        if name is None and (folder / file).is_file():
            tree_of_file = read_json_object(folder / file, DataError, remedy=_REMEDY)
            name = tree_of_file.get("processor_class")
    if name is None or not hasattr(transformers, name):
        raise ValueError(f"transformers has no processor of {tree['model_type']!r}")
    return getattr(transformers, name)


@contextmanager
def _without_video_libraries(base: Any) -> Iterator[None]:
    """Let a class be made without the libraries that only its videos need."""
    import sys

    module: Any = sys.modules[base.__module__]
    names = [name for name in _VIDEO_LIBRARIES if getattr(module, name, module) is None]
    try:
        for name in names:
            setattr(module, name, str)
        yield
    finally:
        for name in names:
            setattr(module, name, None)
