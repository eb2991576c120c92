"""Files of a processor's folder: missing ones, and facts about the processor's arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from calibration.sources.files import tokenizer_folder_problems
from compressor.data.contract import InputFacts
from compressor.errors import CompressError, DataError
from compressor.foreign_files.json_files import read_json_object
from compressor.foreign_files.real_path import real_path
from compressor.models.checkpoint.layout import CONFIG
from compressor.models.checkpoint.tokenizer_json import largest_token_id
from compressor.models.families.transformers.chat_templates import chat_template_problems
from compressor.models.families.transformers.layouts import is_tabulated
from compressor.models.families.transformers.processor import (
    IMAGES,
    PROCESSOR,
    TOKENIZER,
    Processor,
    missing_files,
)

_TOKENIZER_CONFIG = "tokenizer_config.json"


def processor_problems(folder: Path) -> list[str]:
    """Return missing and unreadable files, and a missing chat template."""
    problems = [f"no {name} in {folder}" for name in missing_files(folder) if name != TOKENIZER]
    problems += tokenizer_folder_problems(folder)
    try:
        problems += chat_template_problems(folder)
        for name in (CONFIG, IMAGES, PROCESSOR):
            if (folder / name).is_file():
                _read_object(folder / name)
    except CompressError as error:
        problems.append(str(error))
    return problems


def processor_facts(folder: Path) -> tuple[InputFacts, ...]:
    """Return the arrays of a processor: the largest token, and the number of values of a patch.

    The processors of tabulated models are known; others are opened and tried on an image, with
    transformers.

    Raises:
        DataError: a file is not JSON, or not a tokenizer; the processor cannot be opened, or cannot
            encode an image.
    """
    tokenizer = folder / TOKENIZER
    largest = max(largest_token_id(tokenizer), _largest_added_token(folder / _TOKENIZER_CONFIG))
    return (
        InputFacts("input_ids", "int64", (None,), largest, str(tokenizer)),
        InputFacts("attention_mask", "int64", (None,), 1, "a mask"),
        *(_known_arrays(folder) if is_tabulated(_read_object(folder / CONFIG)) else _tried(folder)),
    )


def _known_arrays(folder: Path) -> tuple[InputFacts, ...]:
    images = _read_object(folder / IMAGES) if (folder / IMAGES).is_file() else {}
    frames: Any = images.get("temporal_patch_size")
    side: Any = images.get("patch_size")
    is_known = isinstance(frames, int) and isinstance(side, int)
    values = 3 * frames * side**2 if is_known else None
    return (
        InputFacts("mm_token_type_ids", "int64", (None,), 1, "text or image"),
        InputFacts("pixel_values", "float32", (None, values)),
        InputFacts("image_grid_thw", "int64", (None, 3)),
    )


def _tried(folder: Path) -> tuple[InputFacts, ...]:
    processor = Processor(real_path(folder))
    of_tokens = (InputFacts(name, "int64", (None,)) for name in processor.token_inputs)
    of_images = (
        InputFacts(name, dtype.name, (None, *(None for _ in shape)))
        for name, (dtype, shape) in processor.image_inputs.items()
    )
    return (*of_tokens, *of_images)


def _largest_added_token(file: Path) -> int:
    """Return the largest id that transformers adds to a tokenizer from its config; -1 for none."""
    added = _read_object(file).get("added_tokens_decoder") if file.is_file() else None
    ids = [int(name) for name in added if name.isdigit()] if isinstance(added, dict) else []
    return max(ids, default=-1)


def _read_object(file: Path) -> dict[str, Any]:
    return read_json_object(file, DataError, remedy="copy the file again")
