"""llama.cpp's library for images (`mtmd.h`) in the package xllamacpp, as far as tests need it."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

from compressor.runtimes.llamacpp.library import load_library

_POINTER, _FLAG, _INT = ctypes.c_void_p, ctypes.c_bool, ctypes.c_int32
_TEXT, _IMAGE = 0, 1
_DEFAULTS = {"flash_attn_type": -1, "image_min_tokens": -1, "image_max_tokens": -1, "warmup": True}
_DISABLED = 0


class _Params(ctypes.Structure):
    _fields_ = (
        ("use_gpu", _FLAG),
        ("device", _POINTER),
        ("print_timings", _FLAG),
        ("n_threads", _INT),
        ("image_marker", _POINTER),
        ("media_marker", _POINTER),
        ("flash_attn_type", _INT),
        ("warmup", _FLAG),
        ("image_min_tokens", _INT),
        ("image_max_tokens", _INT),
        ("cb_eval", _POINTER),
        ("cb_eval_user_data", _POINTER),
        ("batch_max_tokens", _INT),
        ("progress_callback", _POINTER),
        ("progress_callback_user_data", _POINTER),
    )


class _Text(ctypes.Structure):
    _fields_ = (
        ("text", ctypes.c_char_p),
        ("text_len", ctypes.c_size_t),
        ("add_special", _FLAG),
        ("parse_special", _FLAG),
    )


_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "mtmd_context_params_default": (_Params, ()),
    "mtmd_init_from_file": (_POINTER, (ctypes.c_char_p, _POINTER, _Params)),
    "mtmd_bitmap_init": (_POINTER, (ctypes.c_uint32, ctypes.c_uint32, ctypes.c_char_p)),
    "mtmd_input_chunks_init": (_POINTER, ()),
    "mtmd_tokenize": (
        _INT,
        (_POINTER, _POINTER, ctypes.POINTER(_Text), ctypes.POINTER(_POINTER), ctypes.c_size_t),
    ),
    "mtmd_input_chunks_size": (ctypes.c_size_t, (_POINTER,)),
    "mtmd_input_chunks_get": (_POINTER, (_POINTER, ctypes.c_size_t)),
    "mtmd_input_chunk_get_type": (_INT, (_POINTER,)),
    "mtmd_input_chunk_get_n_tokens": (ctypes.c_size_t, (_POINTER,)),
    "mtmd_input_chunk_get_tokens_text": (
        ctypes.POINTER(_INT),
        (_POINTER, ctypes.POINTER(ctypes.c_size_t)),
    ),
    "mtmd_encode_chunk": (_INT, (_POINTER, _POINTER)),
    "mtmd_get_output_embd": (ctypes.POINTER(ctypes.c_float), (_POINTER,)),
    "mtmd_helper_eval_chunks": (
        _INT,
        (_POINTER, _POINTER, _POINTER, _INT, _INT, _INT, _FLAG, ctypes.POINTER(_INT)),
    ),
    "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), (_POINTER, _INT)),
    "mtmd_log_set": (None, (_POINTER, _POINTER)),
    "mtmd_helper_log_set": (None, (_POINTER, _POINTER)),
}


class ImagePrompt:
    """A prompt with one image, in llama.cpp."""

    def __init__(self, projector: Path, model: Any, text: str, pixels_HWC: np.ndarray) -> None:
        """Tokenize a prompt.

        Args:
            projector: the GGUF file of the vision tower.
            model: a ``LlamaCppModel``.
            text: with ``<__media__>`` in the place of the image.
            pixels_HWC: uint8.
        """
        library = load_library()
        self._library = library._library
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(self._library, name)
            function.restype, function.argtypes = result, arguments
        self._library.mtmd_log_set(library.log.callback, None)
        self._library.mtmd_helper_log_set(library.log.callback, None)
        params = self._library.mtmd_context_params_default()
        assert all(getattr(params, name) == value for name, value in _DEFAULTS.items())
        params.use_gpu = params.print_timings = params.warmup = False
        params.n_threads, params.flash_attn_type = 1, _DISABLED
        self._model = model
        self._context = self._library.mtmd_init_from_file(
            str(projector).encode(), model._model, params
        )
        assert self._context, "llama.cpp cannot load the vision tower"
        height, width, _ = pixels_HWC.shape
        bitmap = self._library.mtmd_bitmap_init(width, height, pixels_HWC.tobytes())
        self._chunks = self._library.mtmd_input_chunks_init()
        prompt = _Text(text.encode(), len(text.encode()), False, True)
        status = self._library.mtmd_tokenize(
            self._context, self._chunks, ctypes.byref(prompt), (_POINTER * 1)(bitmap), 1
        )
        assert status == 0, f"llama.cpp cannot tokenize the prompt ({status})"

    def _parts(self) -> list[Any]:
        count = self._library.mtmd_input_chunks_size(self._chunks)
        return [self._library.mtmd_input_chunks_get(self._chunks, n) for n in range(count)]

    def tokens(self, image_token: int) -> list[int]:
        """Return the tokens, with ``image_token`` for each embedding of the image."""
        ids: list[int] = []
        for chunk in self._parts():
            if self._library.mtmd_input_chunk_get_type(chunk) == _TEXT:
                count = ctypes.c_size_t()
                start = self._library.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(count))
                ids += start[: count.value]
            else:
                ids += [image_token] * self._library.mtmd_input_chunk_get_n_tokens(chunk)
        return ids

    def embeddings(self, width: int) -> np.ndarray:
        """Return the embeddings of the image, float32 [T, width]."""
        kind = self._library.mtmd_input_chunk_get_type
        (chunk,) = [chunk for chunk in self._parts() if kind(chunk) == _IMAGE]
        assert self._library.mtmd_encode_chunk(self._context, chunk) == 0
        count = self._library.mtmd_input_chunk_get_n_tokens(chunk)
        values = self._library.mtmd_get_output_embd(self._context)
        return np.ctypeslib.as_array(values, (count, width)).copy()

    def last_logits(self) -> np.ndarray:
        """Return the logits after the prompt, float32 [V]."""
        self._model.make_room(1, 512)
        self._model.clear()
        past = _INT()
        status = self._library.mtmd_helper_eval_chunks(
            self._context,
            self._model._context,
            self._chunks,
            0,
            0,
            512,
            True,
            ctypes.byref(past),
        )
        assert status == 0, f"llama.cpp cannot compute the prompt ({status})"
        logits = self._library.llama_get_logits_ith(self._model._context, -1)
        return np.ctypeslib.as_array(logits, (self._model.vocabulary,)).copy()
