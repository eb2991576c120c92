"""Data source ``image-captions``: images with captions, for models such as CLIP and SigLIP."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, Field

from calibration.sources.arrays import Array, draw_indices, draw_problems
from calibration.sources.conversations.image_references import image_part
from calibration.sources.files import file_problems, match_files, tokenizer_folder_problems
from calibration.sources.image_text.conversations import image_file, image_problem
from calibration.sources.records.reading import (
    layouts_digested,
    read_records,
    sample_records,
    sampled_files,
)
from calibration.sources.records.record import DataRecord, ProblemList, RecordError, checked_text
from compressor.artifacts.fingerprint import digest_file, digest_json
from compressor.data.contract import (
    Batch,
    DataFacts,
    Dataset,
    DataSource,
    InputFacts,
    SourceConfig,
    SourceContext,
    StarterData,
    StarterInputs,
)
from compressor.data.pictures import WHITE, open_picture, parse_colour, without_pillow_warnings
from compressor.errors import CompressError, DataError
from compressor.foreign_files.json_files import read_json_object
from compressor.foreign_files.real_path import real_path
from compressor.models.checkpoint.companions import config_and_companions
from compressor.models.checkpoint.layout import CONFIG
from compressor.models.checkpoint.tokenizer_json import largest_token_id

_PIXELS, _TOKENS, _LABEL = "pixel_values", "input_ids", "label"
_TYPES = "token_type_ids"
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_PATHS = {"path", "processor", "tokenizer"}
"""Fields whose content is digested, and not the path."""
_MOST_TOKENS = 4096
"""A tokenizer that states a larger limit states none."""


class ImageCaptionsConfig(SourceConfig):
    """Config of the data source ``image-captions``."""

    path: str
    """A file of records, or a glob pattern of such files; relative to pipeline.yaml. They end in
    `.jsonl`, `.ndjson`, `.json`, `.csv`, `.tsv` or `.parquet`, and all but parquet may be
    compressed by gzip."""
    processor: str
    """A checkpoint's folder with its tokenizer, image processor and config.json; relative to
    pipeline.yaml."""
    tokenizer: str | None = None
    """Folder of an encoder of texts, with its tokenizer and config.json, if `processor` is that of
    an encoder of images alone; relative to pipeline.yaml."""
    image: str = "image"
    """Key of a record's image: a path relative to the file, a `data:` URL, or the content of an
    image. Nothing is downloaded."""
    text: str = "text"
    """Key of a record's caption, or list of captions. An image may also be in several records."""
    num_samples: Annotated[int, Field(ge=1)] | None = None
    """Largest number of pairs, drawn at random; all pairs by default."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the draw of `num_samples` pairs."""
    background: Annotated[str, AfterValidator(parse_colour)] = WHITE
    """Colour behind transparent pixels: a name such as `white`, or `#rrggbb`."""


@dataclass(frozen=True, slots=True)
class CaptionedImage:
    """An image and one of its captions."""

    where: str
    """File and place of the record, for messages."""
    image: Path | bytes
    text: str


class ImageCaptions(DataSource[ImageCaptionsConfig]):
    """Pairs of an image and a caption, in the arrays of the checkpoint's own processor.

    `pixel_values`, float32 [N, 3, H, W], and the arrays of the tokenizer that the class takes, such
    as `input_ids` and `attention_mask`, int64 [N, T]. `label`, int64 [N]: the position of the first
    sample with the same image, so the first samples of a set, of any number, answer each other.
    """

    name = "image-captions"
    Config = ImageCaptionsConfig

    def starter(self, model: StarterInputs) -> StarterData | None:
        """Return pairs for a model of images and texts whose folder has their processor."""
        names = frozenset(facts.name for facts in model.inputs)
        is_pair = {_PIXELS, _TOKENS} <= model.required  # pixels are optional in conversations
        if not is_pair or _processor_problems(model.folder):
            return None
        fields = {"path": "captions.jsonl", "processor": model.folder}
        return StarterData(fields, names, 'files of records {"image": PATH, "text": …}')

    def problems(self, config: ImageCaptionsConfig, context: SourceContext) -> list[str]:
        """Return missing files, invalid records and missing images.

        Of large files, the first and last records and the headers of their images are checked.
        """
        problems, samples = ProblemList(), list[CaptionedImage]()
        for file in sampled_files(match_files(config.path, context)):
            try:
                for record in sample_records(file, problems):
                    samples += _pairs(record, config, problems)
            except CompressError as error:
                problems.add(str(error))
        _add_image_problems(samples, problems, decode=False)
        return [
            *draw_problems(config),
            *_folder_problems(config, context),
            *file_problems(config.path, context),
            *problems,
        ]

    def facts(self, config: ImageCaptionsConfig, context: SourceContext) -> DataFacts:
        """Return the inputs, the largest token that can occur, and the labels."""
        folder = _text_folder(config, context)
        tokenizer = folder / "tokenizer.json"
        tokens = InputFacts(_TOKENS, "int64", (None,), largest_token_id(tokenizer), str(tokenizer))
        pixels = InputFacts(_PIXELS, "float32", (3, None, None))
        masks = [
            InputFacts(name, "int64", (None,), 1, "a mask")
            for name in _class_inputs(folder)
            if name not in {_TOKENS, _PIXELS}
        ]
        labels = _labels(_drawn(config, context))
        return DataFacts(
            (tokens, pixels, *masks),
            has_labels=True,
            num_samples=len(labels),
            retrieval_labels=tuple(labels.tolist()),
        )

    def digest(self, config: ImageCaptionsConfig, context: SourceContext) -> str:
        """Return a digest of the config, and of the files, all images and the processor."""
        files = match_files(config.path, context)
        images = {sample.image for sample in _read(files, config) if isinstance(sample.image, Path)}
        folder = context.base / config.processor
        companions = config_and_companions(folder)
        return digest_json(
            {
                "version": 1,
                "config": config.model_dump(
                    mode="json", exclude={"path", "processor", "tokenizer"}
                ),
                "files": [digest_file(file) for file in files],
                **layouts_digested(files),
                "images": [digest_file(image) for image in sorted(images)],
                "processor": {file.name: digest_file(file) for file in companions},
                **_tokenizer_digested(config, context),
            }
        )

    def load(self, config: ImageCaptionsConfig, context: SourceContext) -> Dataset:
        """Read the records, and decode their images once, to name all that are broken.

        Raises:
            DataError: records are invalid, images are missing or broken, there are no records, or
                tokenizer or image processor cannot be opened.
            MissingExtraError: a file or an image needs a library that is not installed.
        """
        drawn = _drawn(config, context)
        problems = ProblemList()
        _add_image_problems(drawn, problems, decode=True)
        problems.raise_if_any()
        folders = context.base / config.processor, _text_folder(config, context)
        return _Captions(drawn, folders, config.background)


class _Captions(Dataset):
    """Pairs whose images are encoded on access."""

    label_name = _LABEL

    def __init__(
        self, samples: Sequence[CaptionedImage], folders: tuple[Path, Path], background: str
    ) -> None:
        """Tokenize the texts; the folders are those of image processor and tokenizer."""
        from compressor.models.families.transformers.image_processor import open_image_processor

        self._samples, self._background = samples, background
        self._images = open_image_processor(real_path(folders[0]))
        self._tokens = _encode_texts(real_path(folders[1]), [sample.text for sample in samples])
        self._label_N = _labels(samples)
        self.input_names = (*self._tokens, _PIXELS)

    def __len__(self) -> int:
        return len(self._samples)

    def batch(self, indices: Array, epoch: int = 0) -> Batch:  # noqa: ARG002
        """Return the pairs at ``indices``."""
        pictures = []
        for index in indices.tolist():
            with image_file(self._samples[index].image) as file, without_pillow_warnings():
                pictures.append(open_picture(file, self._background).image)
        pixels = self._images(pictures, return_tensors="np")[_PIXELS]
        arrays = {name: array[indices] for name, array in self._tokens.items()}
        return {
            **arrays,
            _PIXELS: np.asarray(pixels, dtype=np.float32),
            _LABEL: self._label_N[indices],
        }


def _encode_texts(folder: Path, texts: list[str]) -> dict[str, Array]:
    """Return the arrays of captions that the class takes, int64 [N, T].

    They are padded to the longest, or to the tokenizer's limit for a class without a mask, which
    is trained on texts of that length.
    """
    from compressor.models.families.transformers.chat_templates import load_tokenizer

    tokenizer = load_tokenizer(folder)
    names = [name for name in _class_inputs(folder) if name != _PIXELS]
    limit = tokenizer.model_max_length
    has_limit = isinstance(limit, int) and limit <= _MOST_TOKENS
    is_masked = "attention_mask" in names and "attention_mask" in tokenizer.model_input_names
    options: dict[str, Any] = {"truncation": True, "max_length": limit} if has_limit else {}
    try:
        encoding = tokenizer(
            texts,
            padding="max_length" if has_limit and not is_masked else "longest",
            return_tensors="np",
            **options,
        )
    except Exception as error:  # transformers raises classes of several libraries
        raise DataError(f"the tokenizer of {folder} fails: {error}") from error
    arrays = {name: encoding[name].astype(np.int64) for name in names if name in encoding}
    if _TYPES in names and _TYPES not in arrays:  # tokenizers of no class of their own
        arrays[_TYPES] = np.zeros_like(arrays[_TOKENS])
    return arrays


def _class_inputs(folder: Path) -> tuple[str, ...]:
    """Return the names of the inputs of a checkpoint's class, optional ones included."""
    from compressor.models.families.transformers.generic.description import describe

    remedy = "copy it again from where the model comes from"
    tree = read_json_object(folder / CONFIG, DataError, remedy=remedy)
    return tuple(spec.name for spec in describe(tree).signature.inputs)


def _drawn(config: ImageCaptionsConfig, context: SourceContext) -> list[CaptionedImage]:
    """Return the pairs that are drawn from the files.

    Raises:
        DataError: records are invalid, or there are none.
    """
    samples = _read(match_files(config.path, context), config)
    if not samples:
        raise DataError(f"{config.path} holds no records")
    return [samples[index] for index in draw_indices(len(samples), config.num_samples, config.seed)]


def _labels(samples: Sequence[CaptionedImage]) -> Array:
    """Return the position of the first sample with the same image, int64 [N]."""
    first: dict[Path | bytes, int] = {}
    positions = [first.setdefault(sample.image, n) for n, sample in enumerate(samples)]
    return np.array(positions, dtype=np.int64)


def _read(files: Iterable[Path], config: ImageCaptionsConfig) -> list[CaptionedImage]:
    """Return the pairs of files.

    Raises:
        DataError: records are invalid; the first of them are listed.
    """
    problems = ProblemList()
    samples = [
        sample
        for file in files
        for record in read_records(file, problems)
        for sample in _pairs(record, config, problems)
    ]
    problems.raise_if_any()
    return samples


def _pairs(
    record: DataRecord, config: ImageCaptionsConfig, problems: ProblemList
) -> Iterator[CaptionedImage]:
    """Yield the pairs of a record; none after adding a problem."""
    try:
        missing = [key for key in (config.image, config.text) if key not in record.fields]
        if missing:
            keys = ", ".join(map(repr, record.fields)) or "none"
            raise RecordError(f"no field {missing[0]!r}; the record has the fields {keys}")
        image = image_part(record.fields[config.image], record.file.parent).source
        value = record.fields[config.text]
        captions = value if isinstance(value, list) and value else [value]
        texts = [checked_text(caption, repr(config.text)) for caption in captions]
        if blank := [text for text in texts if not text.strip()]:
            raise RecordError(f"{config.text!r} is blank ({blank[0]!r})")
    except RecordError as error:
        problems.add(f"{record.where}: {error}")
        return
    yield from (CaptionedImage(record.where, image, text) for text in texts)


def _add_image_problems(
    samples: Iterable[CaptionedImage], problems: ProblemList, *, decode: bool
) -> None:
    """Add the images that cannot be read, each with its first record."""
    owners: dict[Path | bytes, str] = {}
    for sample in samples:
        owners.setdefault(sample.image, sample.where)
    with without_pillow_warnings():
        for image, where in owners.items():
            if problem := image_problem(image, decode=decode):
                problems.add(f"{where}: {problem}")


def _text_folder(config: ImageCaptionsConfig, context: SourceContext) -> Path:
    """Return the folder of the tokenizer, whose class names the arrays of texts."""
    return context.base / (config.tokenizer or config.processor)


def _tokenizer_digested(config: ImageCaptionsConfig, context: SourceContext) -> dict[str, Any]:
    """Return the digests of a tokenizer that lies in a folder of its own."""
    if config.tokenizer is None:
        return {}
    companions = config_and_companions(_text_folder(config, context))
    return {"tokenizer": {file.name: digest_file(file) for file in companions}}


def _folder_problems(config: ImageCaptionsConfig, context: SourceContext) -> list[str]:
    folder, text = context.base / config.processor, _text_folder(config, context)
    if config.tokenizer is None:
        return _processor_problems(folder)
    problems = [] if (text / CONFIG).is_file() else [f"no {CONFIG} in {text}"]
    return [*_image_problems(folder), *problems, *tokenizer_folder_problems(text)]


def _processor_problems(folder: Path) -> list[str]:
    return [*_image_problems(folder), *tokenizer_folder_problems(folder)]


def _image_problems(folder: Path) -> list[str]:
    problems = [] if (folder / CONFIG).is_file() else [f"no {CONFIG} in {folder}"]
    if not any((folder / name).is_file() for name in _PROCESSORS):
        problems.append(f"no {_PROCESSORS[0]} in {folder}")
    return problems
