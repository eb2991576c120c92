"""A GGUF file in llama.cpp: logits of sequences of tokens.

Shapes: T tokens of a sequence, K kept tokens, V vocabulary entries.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compressor.errors import ModelError, PassError
from compressor.runtimes.llamacpp.library import load_library
from compressor.runtimes.session import Array

CALL_TOKENS = 512
"""Tokens of one call: llama.cpp's own `n_ubatch`. More would take memory for logits, and gain no
time."""
_CELLS = 256
"""The key-value cache of a sequence is a multiple of it."""
_FLOAT16_BYTES = 2
_LONGEST_VALUE = 256
"""Bytes of a value of metadata that is read."""
_AGAIN = "copy or export it again; `autoglm-compress show` describes its header"


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens that are appended to one sequence."""

    row: int
    """Number of the sequence."""
    start: int
    """Position of the first token."""
    ids_T: Array


class LlamaCppModel:
    """One loaded file, and a context that grows with the sequences that it is given.

    Keys and values are kept in float16, and attention is chosen, as llama.cpp does by default.

    Attributes:
        vocabulary: number of logits.
        positions: context length that the file states.
    """

    def __init__(self, file: Path, threads: int, adapter: Path | None = None) -> None:
        """Load a file; every value of its tensors is checked.

        Args:
            file: the GGUF file.
            threads: threads of one operator.
            adapter: a GGUF file with a LoRA adapter of the model, which is always active.

        Raises:
            MissingExtraError: the package with llama.cpp is not installed.
            RequirementError: its library cannot be used.
            ModelError: llama.cpp cannot load a file, or the model is no decoder.
        """
        self._library, self._file, self._threads = load_library(), file, threads
        self._context: int | None = None
        self._rows = self._cells = 0
        params = self._library.llama_model_default_params()
        params.check_tensors, params.n_gpu_layers = True, 0
        with self._library.log.recording() as log:
            self._model = self._library.llama_model_load_from_file(str(file).encode(), params)
        if not self._model:
            raise ModelError(f"llama.cpp cannot load {file}: {log.text()}", remedy=_AGAIN)
        if self._library.llama_model_has_encoder(self._model):
            self.close()
            raise ModelError(f"{file} has an encoder, and only decoders are executed")
        self._vocabulary = self._library.llama_model_get_vocab(self._model)
        self.vocabulary: int = self._library.llama_vocab_n_tokens(self._vocabulary)
        self.positions: int = self._library.llama_model_n_ctx_train(self._model)
        self._adapter = None if adapter is None else self._load_adapter(adapter)

    def _load_adapter(self, adapter: Path) -> int:
        """Return the handle of an adapter, which is released with the model.

        Raises:
            ModelError: llama.cpp cannot load it for this model.
        """
        with self._library.log.recording() as log:
            handle: int | None = self._library.llama_adapter_lora_init(
                self._model, str(adapter).encode()
            )
        if not handle:
            self.close()
            raise ModelError(f"llama.cpp cannot load the adapter {adapter}: {log.text()}")
        return handle

    def tokens(self, text: str) -> list[int]:
        """Return the tokens of a text; special tokens are recognized, and added as the file states.

        Raises:
            PassError: llama.cpp cannot tokenize the text.
        """
        encoded = text.encode()
        room = len(encoded) + 8
        ids = (ctypes.c_int32 * room)()
        count: int = self._library.llama_tokenize(
            self._vocabulary, encoded, len(encoded), ids, room, True, True
        )
        if count < 0:
            raise PassError(f"{self._file}: llama.cpp cannot tokenize a text ({count})")
        return list(ids[:count])

    def logits(self, sequences: Sequence[Array]) -> list[Array]:
        """Return the logits after each token of each sequence, float32 [T, V].

        Short sequences are computed together, long ones in pieces.

        Args:
            sequences: token ids of each, with at least one, and below ``vocabulary``.

        Raises:
            ModelError: llama.cpp has no memory for the sequences.
            PassError: llama.cpp failed inside the model.
        """
        longest = max(len(ids_T) for ids_T in sequences)
        together = min(len(sequences), max(1, CALL_TOKENS // longest))
        self.make_room(together, longest)
        results: list[Array] = []
        for start in range(0, len(sequences), together):
            group = sequences[start : start + together]
            self.clear()
            if len(group) == 1:
                results.append(self.read(0, 0, group[0], keep=len(group[0])))
            else:
                tokens = [Tokens(row, 0, ids_T) for row, ids_T in enumerate(group)]
                ends = np.cumsum([len(ids_T) for ids_T in group])[:-1]
                results += np.split(self.decode(tokens), ends)
        return results

    def make_room(self, rows: int, tokens: int) -> None:
        """Open a context for sequences, unless the present one is for as many and as long ones.

        Raises:
            ModelError: llama.cpp has no memory for the sequences.
        """
        cells = -(-tokens // _CELLS) * _CELLS
        if rows == self._rows and cells <= self._cells:
            return
        self._free_context()
        params = self._library.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.n_batch = rows * cells, rows, CALL_TOKENS
        params.n_threads = params.n_threads_batch = self._threads
        with self._library.log.recording() as log:
            self._context = self._library.llama_init_from_model(self._model, params)
        if not self._context:
            raise ModelError(
                f"llama.cpp has no context of {rows} · {cells} tokens for {self._file}: "
                f"{log.text()}",
                remedy="lower `batch_size`, or the length of the samples",
            )
        self._rows, self._cells = rows, cells
        if self._adapter is not None:
            handles, scales = (ctypes.c_void_p * 1)(self._adapter), (ctypes.c_float * 1)(1.0)
            self._library.llama_set_adapters_lora(self._context, handles, 1, scales)

    def clear(self) -> None:
        """Drop the tokens of all sequences."""
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), True)

    def shorten(self, row: int, length: int) -> None:
        """Drop all but the first tokens of a sequence.

        Raises:
            PassError: llama.cpp cannot drop tokens of this model, such as one with states.
        """
        memory = self._library.llama_get_memory(self._context)
        if not self._library.llama_memory_seq_rm(memory, row, length, -1):
            raise PassError(f"llama.cpp cannot shorten a sequence of {self._file}")

    def copy(self, source: int, target: int) -> None:
        """Let one sequence have the tokens of another, in place of its own."""
        memory = self._library.llama_get_memory(self._context)
        self._library.llama_memory_seq_rm(memory, target, -1, -1)
        self._library.llama_memory_seq_cp(memory, source, target, -1, -1)

    def read(self, row: int, start: int, ids_T: Array, *, keep: int) -> Array:
        """Append tokens to a sequence in pieces; return the logits after the last ones, [K, V].

        Args:
            row: the sequence.
            start: the tokens that it has.
            ids_T: the tokens.
            keep: number of last tokens whose logits are returned.

        Raises:
            PassError: llama.cpp failed inside the model.
        """
        parts = []
        for at in range(0, len(ids_T), CALL_TOKENS):
            piece_T = ids_T[at : at + CALL_TOKENS]
            kept = min(len(piece_T), max(0, keep - (len(ids_T) - at - len(piece_T))))
            part = self.decode([Tokens(row, start + at, piece_T)], keep=kept)
            parts += [part] if kept else []
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def decode(self, group: Sequence[Tokens], *, keep: int | None = None) -> Array:
        """Append tokens to sequences in one call.

        Args:
            group: the tokens of each sequence.
            keep: number of last tokens of each whose logits are returned; None for all.

        Returns:
            Logits in order, float32 [K, V].

        Raises:
            PassError: llama.cpp failed inside the model.
        """
        lengths = [len(tokens.ids_T) for tokens in group]
        total = sum(lengths)
        kept = [length if keep is None else keep for length in lengths]
        batch = self._library.llama_batch_init(total, 0, 1)
        try:
            batch.n_tokens = total
            flags = [np.arange(n) >= n - k for n, k in zip(lengths, kept, strict=True)]
            np.ctypeslib.as_array(batch.logits, (total,))[:] = np.concatenate(flags)
            _fill(batch.token, np.concatenate([tokens.ids_T for tokens in group]))
            positions = [np.arange(len(tokens.ids_T)) + tokens.start for tokens in group]
            _fill(batch.pos, np.concatenate(positions))
            _fill(batch.n_seq_id, np.ones(total))
            rows = np.repeat([tokens.row for tokens in group], lengths)
            for index, row in enumerate(rows.tolist()):
                batch.seq_id[index][0] = row
            with self._library.log.recording() as log:
                status = self._library.llama_decode(self._context, batch)
        finally:
            self._library.llama_batch_free(batch)
        if status:
            raise PassError(f"llama.cpp failed on {self._file} ({status}): {log.text()}")
        if not sum(kept):
            return np.zeros((0, self.vocabulary), np.float32)
        pointer = self._library.llama_get_logits(self._context)
        logits_KV: Array = np.ctypeslib.as_array(pointer, (sum(kept), self.vocabulary)).copy()
        return logits_KV

    @property
    def token_bytes(self) -> int:
        """Bytes of the keys and values of one token, in float16."""
        count = self._library
        heads = count.llama_model_n_head(self._model)
        default = count.llama_model_n_embd(self._model) // max(heads, 1)
        widths = [self._number(f"attention.{name}_length") or default for name in ("key", "value")]
        rows = count.llama_model_n_layer(self._model) * count.llama_model_n_head_kv(self._model)
        return int(rows * sum(widths) * _FLOAT16_BYTES)

    @property
    def has_states(self) -> bool:
        """True if layers have states, which cannot be shortened to the first tokens."""
        library = self._library
        return bool(
            library.llama_model_is_recurrent(self._model)
            or library.llama_model_is_hybrid(self._model)
        )

    def _number(self, key: str) -> int | None:
        """Return a number of the architecture's metadata; None if the file does not state it."""
        architecture = self._text("general.architecture")
        text = self._text(f"{architecture}.{key}")
        return int(text) if text.isdecimal() else None

    def _text(self, key: str) -> str:
        room = ctypes.create_string_buffer(_LONGEST_VALUE)
        self._library.llama_model_meta_val_str(self._model, key.encode(), room, _LONGEST_VALUE)
        return room.value.decode("utf-8", "replace")

    def close(self) -> None:
        """Release the context and the file."""
        self._free_context()
        if self._model:
            self._library.llama_model_free(self._model)
            self._model = None

    def _free_context(self) -> None:
        if self._context:
            self._library.llama_free(self._context)
        self._context, self._rows, self._cells = None, 0, 0


def _fill(pointer: ctypes._Pointer[ctypes.c_int32], values: Array) -> None:
    """Write integers to an array of int32."""
    np.ctypeslib.as_array(pointer, (len(values),))[:] = values
