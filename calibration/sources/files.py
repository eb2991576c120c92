"""Files that a path or a glob pattern names, and tokenizers that several sources read."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.data.contract import SourceContext
from compressor.errors import CompressError, DataError
from compressor.foreign_files.json_files import check_json_file, read_json
from compressor.foreign_files.libraries import library_errors
from compressor.foreign_files.limits import TOKENIZER
from compressor.foreign_files.opening import is_regular
from compressor.foreign_files.tokenizer_trial import check_encodes
from compressor.models.checkpoint.tokenizer_json import largest_token_id

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_TOKENIZER = "tokenizer.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_NAMED_TOKENS = 3
"""Number of missing tokens that a message names."""
_ARCHIVE_DEBRIS = "__MACOSX"
_SLOW_TOKENIZERS = (
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tiktoken.model",
    "vocab.txt",
    "vocab.json",
)
"""Files from which transformers builds a tokenizer where there is no tokenizer.json."""


def match_files(pattern: str, context: SourceContext) -> list[Path]:
    """Return the files that a path or a glob pattern names, sorted.

    A path that exists is that file, whatever characters it has; only otherwise is it a pattern. So
    are the folders at its start. Hidden files and those in hidden folders match only where the
    pattern names them. Relative paths start from the base of the context.
    """
    file = context.base / pattern
    return [file] if is_regular(file) else _glob(pattern, context, hidden=False)


def file_problems(pattern: str, context: SourceContext) -> list[str]:
    """Return a message if a path or pattern names no file."""
    if match_files(pattern, context):
        return []
    if (context.base / pattern).is_dir():
        return [f"{pattern} is a folder: name its files, such as {Path(pattern, '*.jsonl')}"]
    if hidden := _glob(pattern, context, hidden=True):
        return [f"{pattern} matches only hidden files, such as {hidden[0]}: name them explicitly"]
    return [f"{pattern} matches no file below {context.base}"]


def _glob(pattern: str, context: SourceContext, *, hidden: bool) -> list[Path]:
    path = Path(pattern)
    folder, parts = context.base / path.anchor, path.parts[len(Path(path.anchor).parts) :]
    while parts and (folder / parts[0]).is_dir():
        folder, parts = folder / parts[0], parts[1:]
    if not parts:
        return []
    try:
        files = sorted(file for file in folder.glob(str(Path(*parts))) if file.is_file())
    except ValueError:  # `**` inside of a name
        return []
    if hidden:
        return files
    return [file for file in files if not _is_hidden(file.parts[len(folder.parts) :], parts)]


def _is_hidden(matched: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Return True if a part of a matched path is hidden, and no part of the pattern names it."""
    named = [part for part in pattern if part[0] == "." or part == _ARCHIVE_DEBRIS]
    return any(
        (part[0] == "." or part == _ARCHIVE_DEBRIS)
        and not any(fnmatchcase(part, name) for name in named)
        for part in matched
    )


def tokenizer_file(name: str, context: SourceContext) -> Path:
    """Return the file of a tokenizer, which is named itself or by its folder."""
    path = context.base / name
    return path if path.suffix == ".json" else path / _TOKENIZER


def tokenizer_problems(name: str, context: SourceContext) -> list[str]:
    """Return a message if a tokenizer's file is missing, has no vocabulary or multiplies texts."""
    file = tokenizer_file(name, context)
    if file.is_file():
        try:
            largest_token_id(file)
            check_encodes(file)
        except CompressError as error:
            return [str(error)]
        return []
    if file.parent.is_dir() and file.name == _TOKENIZER:
        return tokenizer_folder_problems(file.parent)
    return [f"there is no tokenizer at {file}; `tokenizer` is relative to pipeline.yaml"]


def missing_token_problems(name: str, context: SourceContext) -> list[str]:
    """Return a message if transformers would add tokens that a tokenizer's file lacks.

    Their texts would be split into other tokens.
    """
    file = tokenizer_file(name, context)
    config = file.parent / _TOKENIZER_CONFIG
    if file.name != _TOKENIZER or not file.is_file() or not config.is_file():
        return []
    try:
        added = read_json(config, DataError, remedy=None)["added_tokens_decoder"]
        largest = largest_token_id(file)
        missing = [token["content"] for id_, token in added.items() if int(id_) > largest]
    except (ValueError, LookupError, TypeError, AttributeError, CompressError):
        return []  # not of this form, or named by `tokenizer_problems`
    if not missing:
        return []
    return [
        f"{config} adds tokens that {_TOKENIZER} lacks: {', '.join(missing[:_NAMED_TOKENS])}; "
        f"write both anew: {_save_command(file.parent)}"
    ]


def _save_command(folder: Path) -> str:
    return (
        'python -c "from transformers import AutoTokenizer as T; '
        f"T.from_pretrained('{folder}').save_pretrained('{folder}')\""
    )


def tokenizer_folder_problems(folder: Path) -> list[str]:
    """Return a message if a checkpoint's folder has no tokenizer.json, with the remedy."""
    if (folder / _TOKENIZER).is_file():
        return tokenizer_problems(_TOKENIZER, SourceContext(folder))
    if others := [other for other in _SLOW_TOKENIZERS if (folder / other).is_file()]:
        libraries = any(name.endswith(".model") for name in others)
        install = "pip install sentencepiece tiktoken && " if libraries else ""
        return [
            f"{folder} has {' and '.join(others)}, but no {_TOKENIZER}; write it with: {install}"
            + _save_command(folder)
        ]
    return [f"there is no tokenizer at {folder / _TOKENIZER}; copy the checkpoint's file there"]


def open_tokenizer(file: Path) -> Tokenizer:
    """Open a tokenizer's file, without the truncation and padding that it may be saved with.

    Raises:
        DataError: the file is not a tokenizer, or needs too much memory or time for a short text.
    """
    from tokenizers import Tokenizer

    check_json_file(file, TOKENIZER, DataError)
    check_encodes(file)
    with library_errors(
        f"{file} is not a tokenizer", DataError, "copy the checkpoint's files again"
    ):
        tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
