"""Files of a model folder that its model uses: description, weights, tokenizer and processor."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from compressor.artifacts.files import copy_file
from compressor.errors import ModelError
from compressor.foreign_files import limits
from compressor.foreign_files.opening import check_file
from compressor.models.attention_patterns.record import ATTENTION_PATTERN
from compressor.models.checkpoint.layout import CONFIG
from compressor.models.checkpoint.weight_files import WeightFiles, read_weight_files
from compressor.models.quantized.quantization import QUANTIZATION, SCALES

_CALIBRATION = "calibration.json"
"""Activation ranges beside a quantized model (``calibration/table.py``)."""
_LICENCES = ("LICENSE*", "NOTICE*", "USE_POLICY*")
"""Patterns of terms that have to travel with the weights."""
TOKENIZER_PATTERNS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*.json",
    "vocab*.txt",
    "merges.txt",
    "bpe.codes",
    "normalizer.json",
    "*.model",
    "*.tiktoken",
    "tekken.json",
)
"""Patterns of the files of `tokenizers`, of SentencePiece, tiktoken and Mistral, and older ones."""
_COMPANIONS = (
    "generation_config.json",
    *TOKENIZER_PATTERNS,
    "chat_template*.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    # Image, video and audio processors.
    "preprocessor_config.json",
    "processor_config.json",
    "image_preprocessor_config.json",
    "video_preprocessor_config.json",
    "audio_preprocessor_config.json",
    *_LICENCES,
)
"""Patterns of the files beside config and weights that transformers or a licence needs."""
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
"""Files of which transformers opens a tokenizer; that of CTC models is a vocabulary alone."""


def companion_files(folder: Path) -> list[Path]:
    """Return the files of tokenizer, processor and licence, sorted.

    Raises:
        ModelError: one is larger than any such file, such as a sparse file of 1 TB.
    """
    files = sorted(
        file
        for pattern in ("*", "additional_chat_templates/*")
        for file in folder.glob(pattern)
        if file.is_file() and is_companion(file.relative_to(folder).as_posix())
    )
    for file in files:
        check_file(file, ModelError, limits.TOKENIZER)
    return files


def config_and_companions(folder: Path) -> list[Path]:
    """Return config.json and the files of tokenizer, processor and licence.

    Raises:
        ModelError: config.json is missing, or a file is larger than any such file.
    """
    check_file(folder / CONFIG, ModelError, limits.CONFIG)
    return [folder / CONFIG, *companion_files(folder)]


def has_tokenizer(folder: Path) -> bool:
    """Return True if a folder holds a file of which transformers opens a tokenizer."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def model_files(folder: Path, weights: WeightFiles | None = None) -> list[Path]:
    """Return all files of a folder that its model uses, sorted.

    Args:
        folder: a model folder with a config.json.
        weights: its weight files, where they have been read already.
    """
    weights = weights or read_weight_files(folder)
    names = (CONFIG, QUANTIZATION, SCALES, _CALIBRATION, ATTENTION_PATTERN)
    described = [folder / name for name in names]
    return sorted(
        {
            *(file for file in described if file.is_file()),
            *weights.files,
            *companion_files(folder),
        }
    )


def copy_companions(source: Path, target: Path) -> None:
    """Copy the files of tokenizer, processor and licence from one model folder to another.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    for file in companion_files(source):
        copy_file(file, target / file.relative_to(source))


def copy_licences(source: Path, target: Path) -> None:
    """Copy the files of the licence from one model folder to another.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    for file in companion_files(source):
        if is_licence(file.name):
            copy_file(file, target / file.name)


def is_licence(name: str) -> bool:
    """Return True for the name of a file with terms that travel with the weights."""
    return any(fnmatchcase(name, pattern) for pattern in _LICENCES)


def is_companion(name: str) -> bool:
    """Return True for the name of a file of tokenizer, processor or licence."""
    return any(fnmatchcase(name, pattern) for pattern in _COMPANIONS)
