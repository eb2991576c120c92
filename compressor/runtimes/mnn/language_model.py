"""Language models in MNN: a folder that its engine opens, and sessions of such folders.

Shapes: T tokens of a sequence, V vocabulary entries.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np

from compressor.data.contract import Batch
from compressor.errors import MissingExtraError, ModelError, PassError
from compressor.foreign_files.json_files import read_json_object
from compressor.models.capabilities.signature import InputSpec, OutputSpec
from compressor.models.facts import ModelFacts
from compressor.runtimes.format_records import Cost, SampleShapes
from compressor.runtimes.formats import Format
from compressor.runtimes.mnn.silence import silent_stdout
from compressor.runtimes.session import Array, Session
from compressor.runtimes.valid_ranges import valid_ranges

LANGUAGE_MODEL = "llm.mnn"
WEIGHTS = "llm.mnn.weight"
LANGUAGE_CONFIG = "llm_config.json"
CONFIG = "config.json"
TOKENIZER_FILE = "tokenizer.mtok"
_FILES = (LANGUAGE_MODEL, WEIGHTS, LANGUAGE_CONFIG, CONFIG, TOKENIZER_FILE)
_TOKENS, _MASK, _LOGITS = "input_ids", "attention_mask", "logits"
_AGAIN = "run `export-mnn` again"
_SETTINGS = {"precision": "high", "all_logits": True, "reuse_kv": False}
Memory = Literal["low", "high"]
"""`low`: packed weights are multiplied with activations in 8 bits; `high`: all in float32."""


class MnnLanguageModel(Format):
    """A folder of MNN's engine for language models."""

    name = "mnn"
    summary = "a language model of MNN: llm.mnn and its weights, with a tokenizer"
    runtime = "MNN"

    def recognizes(self, path: Path) -> bool:
        """Return True for a folder with the engine's files."""
        return path.is_dir() and all((path / name).is_file() for name in _FILES)

    def describe(self, path: Path) -> list[tuple[str, str]]:
        """Return the size of the weights, and sizes of the model."""
        description = _description(path)
        rows = [("layers", "layer_nums"), ("hidden width", "hidden_size")]
        return [
            (WEIGHTS, f"{(path / WEIGHTS).stat().st_size / 1e6:.3g} MB"),
            *((label, str(description.get(key))) for label, key in rows),
            ("context length", str(description.get("context_length"))),
        ]

    def check(self, path: Path) -> None:
        """Check that all files are there.

        Raises:
            ModelError: one is missing.
        """
        if missing := [name for name in _FILES if not (path / name).is_file()]:
            raise ModelError(f"{path} has no {', '.join(missing)}", remedy=_AGAIN)

    def facts(self, path: Path) -> ModelFacts:
        """Return the bytes that a phone loads."""
        return ModelFacts(size_bytes=_size(path))

    def cost(self, path: Path, sample_shapes: SampleShapes) -> Cost:
        """Return the bytes that a phone loads."""
        del sample_shapes
        return Cost(_size(path))

    def open_session(self, path: Path, *, threads: int, device: str = "cpu") -> Session:
        """Open the folder in MNN, as its settings state.

        Raises:
            MissingExtraError: MNN is not installed.
            ModelError: MNN cannot open the folder.
            UsageError: the device is no CPU.
        """
        if device != "cpu":
            raise self._unsupported(path, "it is executed on the CPU alone", "use --device cpu")
        self.check(path)
        return MnnLanguageSession(path, threads, "low")


class MnnLanguageSession(Session):
    """An open folder. Tokens that ``attention_mask`` leaves out are not computed."""

    def __init__(self, folder: Path, threads: int, memory: Memory) -> None:
        """Open a folder.

        Args:
            folder: the model.
            threads: threads of one operator.
            memory: how packed weights are multiplied.

        Raises:
            MissingExtraError: MNN is not installed.
            ModelError: MNN cannot open the folder.
        """
        if find_spec("MNN") is None:
            raise MissingExtraError("MNN", "executing .mnn files", "mnn")
        description = _description(folder)
        with silent_stdout():  # the library prints what the processor supports
            from MNN import llm

            settings = {"thread_num": threads, "memory": memory, **_SETTINGS}
            try:
                with _folder_with(folder, settings) as opened:
                    self._model: Any = llm.create(str(opened / CONFIG))
                    self._model.load()
            except (RuntimeError, SystemError, ValueError) as error:
                raise ModelError(f"MNN cannot open {folder}: {error}", remedy=_AGAIN) from error
        self._folder = folder
        self.runtime = f"MNN {version('MNN')}"
        vocabulary = int(description["vocab_size"])
        shape = ("batch", "sequence")
        longest = int(description["context_length"])
        self.inputs = (
            InputSpec(_TOKENS, "int64", shape, below=vocabulary, longest=longest),
            InputSpec(_MASK, "int64", shape, below=2, optional=True),
        )
        self.output_names = (_LOGITS,)
        self.outputs = (OutputSpec(_LOGITS, "float32", (*shape, vocabulary)),)
        self._vocabulary = vocabulary

    def tokens(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        return [int(token) for token in self._model.tokenizer_encode(text)]

    def compute(self, feeds: Batch) -> Batch:
        """See ``Session.compute``.

        Raises:
            DataError: a mask has gaps, or leaves out all tokens of a sample.
            PassError: MNN failed inside the model.
        """
        ids_BT = feeds[_TOKENS]
        ranges = valid_ranges(feeds.get(_MASK, np.ones_like(ids_BT)), "MNN")
        logits_BTV = np.zeros((*ids_BT.shape, self._vocabulary), np.float32)
        for row, valid in enumerate(ranges):
            logits_BTV[row, valid] = self._logits(ids_BT[row, valid])
        return {_LOGITS: logits_BTV}

    def _logits(self, ids_T: Array) -> Array:
        with silent_stdout():
            self._model.reset()
            values = self._model.forward(ids_T.tolist())
        read = None if values is None else values.read()
        if read is None:
            raise PassError(f"MNN computed no logits with {self._folder}")
        logits_TV: Array = np.array(read).reshape(-1, self._vocabulary)
        if len(logits_TV) != len(ids_T):
            raise PassError(f"MNN computed logits of {len(logits_TV)} of {len(ids_T)} tokens")
        return logits_TV

    def close(self) -> None:
        """Release the model."""
        del self._model


@contextmanager
def _folder_with(folder: Path, settings: Mapping[str, Any]) -> Iterator[Path]:
    """Provide a folder of links with other settings: the engine reads them from a file alone."""
    stated = read_json_object(folder / CONFIG, ModelError, remedy=_AGAIN)
    with TemporaryDirectory() as name:
        for file in folder.iterdir():
            if file.name != CONFIG:
                (Path(name) / file.name).symlink_to(file.resolve())
        (Path(name) / CONFIG).write_text(json.dumps({**stated, **settings}), encoding="utf-8")
        yield Path(name)


def _description(folder: Path) -> Mapping[str, Any]:
    return read_json_object(folder / LANGUAGE_CONFIG, ModelError, remedy=_AGAIN)


def _size(path: Path) -> int:
    return sum((path / name).stat().st_size for name in _FILES)
