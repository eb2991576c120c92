"""Sessions of GGUF files in llama.cpp."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from compressor.data.contract import Batch
from compressor.errors import ModelError
from compressor.foreign_files.trials import trial_problem
from compressor.models.capabilities.signature import InputSpec, OutputSpec
from compressor.runtimes.llamacpp import trial
from compressor.runtimes.llamacpp.library import load_library, runtime_name
from compressor.runtimes.llamacpp.model import LlamaCppModel
from compressor.runtimes.session import Session
from compressor.runtimes.valid_ranges import valid_ranges

_TOKENS, _MASK, _LOGITS = "input_ids", "attention_mask", "logits"
_LEAST_SECONDS, _BYTES_PER_SECOND = 60, 20_000_000
_LEAST_BYTES, _COPIES = 4 << 30, 3
"""Memory of a trial: code and a key-value cache; the file, and weights in the kernels' order."""


class LlamaCppSession(Session):
    """``model.gguf`` on the CPU, as llama.cpp computes it by default.

    Whole windows of tokens are read into an empty key-value cache. Tokens that ``attention_mask``
    leaves out are not computed, and their logits are zeros.
    """

    def __init__(self, file: Path, threads: int) -> None:
        """Open a file, first in a process of its own.

        llama.cpp ends its process on some files that contradict themselves, so another one loads
        the file and computes a token beforehand.

        Args:
            file: the GGUF file.
            threads: threads of one operator.

        Raises:
            MissingExtraError: the package with llama.cpp is not installed.
            RequirementError: its library cannot be used.
            ModelError: llama.cpp cannot load the file, or computes no token.
        """
        load_library()
        check_by_trial(file)
        self._model = LlamaCppModel(file, threads)
        self.runtime = runtime_name()
        shape = ("batch", "sequence")
        vocabulary, positions = self._model.vocabulary, self._model.positions
        self.inputs = (
            InputSpec(_TOKENS, "int64", shape, below=vocabulary, longest=positions),
            InputSpec(_MASK, "int64", shape, below=2, optional=True),
        )
        self.output_names = (_LOGITS,)
        self.outputs = (OutputSpec(_LOGITS, "float32", (*shape, vocabulary)),)

    def compute(self, feeds: Batch) -> Batch:
        """See ``Session.compute``.

        Raises:
            DataError: a mask has gaps, or leaves out all tokens of a sample.
            PassError: llama.cpp failed inside the model.
        """
        ids_BT = feeds[_TOKENS]
        ranges = valid_ranges(feeds.get(_MASK, np.ones_like(ids_BT)), "llama.cpp")
        rows = [ids_T[valid] for ids_T, valid in zip(ids_BT, ranges, strict=True)]
        logits = self._model.logits(rows)
        if all(len(row) == ids_BT.shape[1] for row in rows):
            return {_LOGITS: logits[0][None] if len(logits) == 1 else np.stack(logits)}
        logits_BTV = np.zeros((*ids_BT.shape, self._model.vocabulary), np.float32)
        for row, (valid, logits_TV) in enumerate(zip(ranges, logits, strict=True)):
            logits_BTV[row, valid] = logits_TV
        return {_LOGITS: logits_BTV}

    def close(self) -> None:
        """Release the model."""
        self._model.close()


def check_by_trial(file: Path) -> None:
    """Load a file and compute a token in another process.

    Raises:
        ModelError: the process crashed, or needed more time or memory than such a file can.
    """
    size_bytes = file.stat().st_size
    problem = trial_problem(
        trial.__name__,
        str(file).encode(),
        cpu_seconds=_LEAST_SECONDS + size_bytes // _BYTES_PER_SECOND,
        memory_bytes=_LEAST_BYTES + _COPIES * size_bytes,
    )
    if problem is not None:
        raise ModelError(
            f"llama.cpp cannot load {file}: a trial of it {problem}",
            remedy="the file contradicts itself: copy or export it again",
        )
