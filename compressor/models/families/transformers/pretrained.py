"""Tokenizers, processors and extractors that transformers opens from the files of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compressor.errors import DataError
from compressor.foreign_files.json_files import check_json_file
from compressor.foreign_files.libraries import library_errors
from compressor.foreign_files.limits import TOKENIZER
from compressor.foreign_files.opening import check_folder


def from_pretrained(loader: Any, folder: Path, what: str, **options: Any) -> Any:
    """Call ``from_pretrained`` of a class of transformers on a local folder.

    The files are checked first: transformers would wait for ever on a named pipe, and read a file
    of any size. No code of the folder is executed.

    Args:
        loader: the class.
        folder: the folder.
        what: what the class opens, for messages, such as ``tokenizer``.
        options: further arguments.

    Raises:
        DataError: the folder holds no such thing, or something else than regular files.
    """
    check_folder(folder, DataError, TOKENIZER)
    for file in sorted(folder.glob("*.json")):
        check_json_file(file, TOKENIZER, DataError)
    with library_errors(
        f"{folder} holds no {what} that transformers opens",
        DataError,
        "copy the checkpoint's files again",
    ):
        return loader.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, **options
        )
