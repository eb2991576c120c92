"""Data source ``audio``: recordings, with or without transcripts, for speech models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from calibration.sources.arrays import Array, ArrayDataset, draw_indices, draw_problems
from calibration.sources.files import file_problems, match_files
from calibration.sources.records.reading import read_records
from calibration.sources.records.record import (
    DataRecord,
    ProblemList,
    RecordError,
    UnknownKeysError,
    checked_text,
)
from compressor.artifacts.fingerprint import digest_file, digest_json
from compressor.data.contract import (
    DataFacts,
    Dataset,
    DataSource,
    SourceConfig,
    SourceContext,
    StarterData,
    StarterInputs,
)
from compressor.errors import CompressError, DataError
from compressor.foreign_files.json_files import read_json_object
from compressor.foreign_files.limits import AUDIO, SOURCE_TEXT
from compressor.foreign_files.opening import check_file, read_text
from compressor.models.checkpoint.companions import (
    TOKENIZER_FILES,
    config_and_companions,
    has_tokenizer,
)
from compressor.models.checkpoint.decoder_start import first_tokens
from compressor.models.checkpoint.layout import CONFIG

_SUFFIX, _TRANSCRIPT_SUFFIX = ".wav", ".txt"
_AUDIO, _TEXT = "audio", "text"
_LABEL, _IGNORED = "label", -100
_PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
_INPUTS = ("input_features", "input_values")


class AudioConfig(SourceConfig):
    """Config of the data source ``audio``."""

    path: str
    """A folder of WAV files, each with its transcript in a file of the same name that ends in
    `.txt`, or without any transcripts; or a file of records `{"audio": …, "text": …}`, or a glob
    pattern of such files. Relative to pipeline.yaml; `audio` is relative to its file. WAV files are
    PCM or float, of the sampling rate that the feature extractor takes."""
    processor: str
    """The folder with the checkpoint's config.json, feature extractor and tokenizer; relative to
    pipeline.yaml."""
    language: str | None = None
    """Language of the transcripts, such as `en`, for a model with a decoder and tokens for it; by
    default that of generation_config.json. Where there is none, as for a Whisper of several
    languages, the model detects it when it generates."""
    task: str | None = None
    """Task of a model with a decoder and tokens for tasks, `transcribe` or `translate`; by default
    that of generation_config.json."""
    num_samples: Annotated[int, Field(ge=1)] | None = None
    """Largest number of recordings, drawn at random; all recordings by default."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the draw of `num_samples` recordings."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording and its transcript."""

    file: Path
    text: str | None


class Audio(DataSource[AudioConfig]):
    """Recordings in the arrays that a speech model's feature extractor makes of them.

    `input_features` or `input_values`, float32, padded to the longest recording or to the length
    that the extractor states; with `attention_mask`, int64, 0 at padding, where the extractor
    returns one. With transcripts: `label`, int64 [N, L], the tokens of each, padded
    with -100; and for a model with a decoder `decoder_input_ids`, the same behind its first tokens.
    """

    name = "audio"
    Config = AudioConfig

    def starter(self, model: StarterInputs) -> StarterData | None:
        """Return recordings for a model that takes them, with the extractor of its folder."""
        taken = frozenset(name for name in _INPUTS if name in model.required)
        if not taken:
            return None
        fields = {"path": "recordings", "processor": model.folder}
        return StarterData(fields, taken, "a folder of .wav files with .txt files of the same name")

    def problems(self, config: AudioConfig, context: SourceContext) -> list[str]:
        """Return missing files and folders, missing transcripts, and invalid records."""
        folder = context.base / config.processor
        problems = [*draw_problems(config), *_processor_problems(config, context)]
        if not (context.base / config.path).is_dir():
            problems += file_problems(config.path, context)
        if problems:
            return problems
        try:
            has_texts = _recordings(config, context)[0].text is not None
            if has_texts and not has_tokenizer(folder):
                names = " or ".join(TOKENIZER_FILES)
                problems.append(f"no {names} in {folder}, for the transcripts")
            _check_language(config, context)
        except CompressError as error:
            problems.append(str(error))
        return problems

    def facts(self, config: AudioConfig, context: SourceContext) -> DataFacts:
        """Return the number of recordings, and whether they have transcripts."""
        recordings = _recordings(config, context)
        count = len(recordings)
        return DataFacts(
            has_labels=recordings[0].text is not None,
            num_samples=count if config.num_samples is None else min(count, config.num_samples),
        )

    def digest(self, config: AudioConfig, context: SourceContext) -> str:
        """Return a digest of the config, the recordings, the transcripts and the processor."""
        folder = context.base / config.processor
        files = config_and_companions(folder)
        return digest_json(
            {
                "version": 2,
                "config": config.model_dump(mode="json", exclude={"path", "processor"}),
                "recordings": [
                    [digest_file(recording.file), recording.text]
                    for recording in _recordings(config, context)
                ],
                "processor": {file.name: digest_file(file) for file in files if file.is_file()},
            }
        )

    def load(self, config: AudioConfig, context: SourceContext) -> Dataset:
        """Read the recordings, and encode them with the checkpoint's own classes.

        Raises:
            DataError: a file is no WAV file, or has another sampling rate; the processor cannot
                be opened.
        """
        from compressor.models.families.transformers.feature_extractor import FeatureExtractor

        recordings = _recordings(config, context)
        drawn = [
            recordings[index]
            for index in draw_indices(len(recordings), config.num_samples, config.seed)
        ]
        folder = context.base / config.processor
        arrays = FeatureExtractor(folder).encode([recording.file for recording in drawn])
        texts = [recording.text for recording in drawn if recording.text is not None]
        return SpeechDataset(folder, arrays, texts, config.language, config.task)


class SpeechDataset(ArrayDataset):
    """Recordings, with the tokens of their transcripts if there are any."""

    def __init__(
        self,
        folder: Path,
        arrays: dict[str, Array],
        texts: Sequence[str],
        language: str | None = None,
        task: str | None = None,
    ) -> None:
        """Tokenize the transcripts.

        Args:
            folder: the checkpoint.
            arrays: those of the recordings.
            texts: the transcripts; empty if there are none.
            language: their language, for a decoder with tokens for it.
            task: the task of such a decoder.
        """
        self.language, self.task = language, task
        arrays = dict(arrays)
        names = tuple(arrays)
        self._tokenizer: Any = None
        if texts:
            from compressor.models.families.transformers.chat_templates import load_tokenizer

            self.texts, self._tokenizer = texts, load_tokenizer(folder)
            if _has_decoder(folder):
                start = first_tokens(folder, language=language, task=task)
                arrays |= _decoder_arrays(texts, start, self._tokenizer)
                names += ("decoder_input_ids",)
            else:
                tokens = [self._tokenizer(text)["input_ids"] for text in texts]
                arrays[_LABEL] = _padded(tokens, _IGNORED)
                self.blank_token = self._tokenizer.pad_token_id
        super().__init__(arrays, names, _LABEL if texts else None)

    def spell(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, repeated ones included."""
        is_ctc = hasattr(self._tokenizer, "word_delimiter_token")
        options = {"group_tokens": False} if is_ctc else {}
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True, **options)
        return text


def _decoder_arrays(texts: Sequence[str], start: Sequence[int], tokenizer: Any) -> dict[str, Array]:
    """Return the decoder's tokens, shifted by its first ones, and the tokens that follow each."""
    tokens = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    end = tokenizer.eos_token_id
    pad = tokenizer.pad_token_id or 0
    inputs = _padded([[*start, *text] for text in tokens], pad)
    ignored = [_IGNORED] * (len(start) - 1)
    ends = [] if end is None else [end]
    labels = _padded([[*ignored, *text, *ends] for text in tokens], _IGNORED)
    return {"decoder_input_ids": inputs, _LABEL: labels}


def _has_decoder(folder: Path) -> bool:
    return bool(_read(folder / CONFIG).get("is_encoder_decoder"))


def _check_language(config: AudioConfig, context: SourceContext) -> None:
    """Check the language and the task.

    Raises:
        UsageError: the model has no tokens for them.
        DataError: it has no decoder, or no first tokens.
    """
    given = [name for name in ("language", "task") if getattr(config, name) is not None]
    folder = context.base / config.processor
    if given and not _has_decoder(folder):
        raise DataError(
            f"no effect of {' and '.join(f'`{name}`' for name in given)}: the model of {folder} "
            "has no decoder",
            remedy=f"leave {' and '.join(given)} out",
        )
    if given:
        first_tokens(folder, language=config.language, task=config.task)


def _padded(rows: Sequence[Sequence[int]], value: int) -> Array:
    """Return rows of one length, int64 [N, L]."""
    array = np.full((len(rows), max(map(len, rows))), value, dtype=np.int64)
    for index, row in enumerate(rows):
        array[index, : len(row)] = row
    return array


def _recordings(config: AudioConfig, context: SourceContext) -> list[Recording]:
    """Return the recordings of a folder or of records.

    Raises:
        DataError: there are none, files are missing, or some have transcripts and some have none.
    """
    root = context.base / config.path
    recordings = _from_folder(root) if root.is_dir() else _from_records(config, context)
    if not recordings:
        raise DataError(f"{config.path} holds no recordings ({_SUFFIX} files)")
    untold = [recording.file for recording in recordings if recording.text is None]
    if untold and len(untold) < len(recordings):
        raise DataError(
            f"{config.path} holds transcripts for some recordings only; none for "
            + ", ".join(file.name for file in untold[:5]),
            remedy="add the missing transcripts, or remove all of them",
        )
    return recordings


def _from_folder(root: Path) -> list[Recording]:
    files = sorted(
        file
        for file in root.rglob("*")
        if file.suffix.lower() == _SUFFIX and not file.name.startswith(".")
    )
    for file in files:  # before a digest reads them whole
        check_file(file, DataError, AUDIO)
    return [Recording(file, _transcript(file.with_suffix(_TRANSCRIPT_SUFFIX))) for file in files]


def _transcript(file: Path) -> str | None:
    if not file.is_file():
        return None
    return read_text(file, SOURCE_TEXT, DataError).strip()


def _from_records(config: AudioConfig, context: SourceContext) -> list[Recording]:
    problems = ProblemList()
    recordings = []
    for file in match_files(config.path, context):
        for record in read_records(file, problems):
            try:
                recordings.append(_recording(record))
            except RecordError as error:
                problems.add(f"{record.where}: {error}")
    problems.raise_if_any()
    return recordings


def _recording(record: DataRecord) -> Recording:
    fields = record.fields
    if unknown := sorted(fields.keys() - {_AUDIO, _TEXT}):
        raise UnknownKeysError(unknown)
    if _AUDIO not in fields:
        raise RecordError(f"no field {_AUDIO!r}")
    file = record.file.parent / checked_text(fields[_AUDIO], repr(_AUDIO))
    if not file.is_file():
        raise RecordError(f"{file} does not exist")
    text = fields.get(_TEXT)
    return Recording(file, None if text is None else checked_text(text, repr(_TEXT)).strip())


def _processor_problems(config: AudioConfig, context: SourceContext) -> list[str]:
    folder = context.base / config.processor
    if not folder.is_dir():
        return [f"{config.processor} is not a directory ({folder})"]
    problems = [] if (folder / CONFIG).is_file() else [f"no {CONFIG} in {folder}"]
    if not any((folder / name).is_file() for name in _PREPROCESSORS):
        problems.append(f"no {_PREPROCESSORS[0]} in {folder}")
    return problems


def _read(file: Path) -> dict[str, Any]:
    return read_json_object(file, DataError, remedy="copy it again from where the model comes from")
