"""llama.cpp's C interface (`llama.h`), from the library that the package xllamacpp ships.

The package's own classes wrap llama.cpp's server and give no logits; its compiled module exports
the whole C interface, which is called by ctypes. Structures have no version there, so their default
values are compared with the known ones before any other call.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from compressor.errors import MissingExtraError, RequirementError

PACKAGE = "xllamacpp"
_AUTO, _F16 = -1, 1
_ERROR = 4
"""``GGML_LOG_LEVEL_ERROR``."""
_KEPT_LINES = 3
_POINTER, _FLAG = ctypes.c_void_p, ctypes.c_bool
_INT, _UNSIGNED, _FLOAT = ctypes.c_int32, ctypes.c_uint32, ctypes.c_float


class ModelParams(ctypes.Structure):
    """``llama_model_params``."""

    _fields_ = (
        ("devices", _POINTER),
        ("tensor_buft_overrides", _POINTER),
        ("n_gpu_layers", _INT),
        ("split_mode", _INT),
        ("load_mode", _INT),
        ("lazy_mode", _INT),
        ("main_gpu", _INT),
        ("tensor_split", _POINTER),
        ("progress_callback", _POINTER),
        ("progress_callback_user_data", _POINTER),
        ("kv_overrides", _POINTER),
        ("vocab_only", _FLAG),
        ("check_tensors", _FLAG),
        ("use_extra_bufts", _FLAG),
        ("no_host", _FLAG),
        ("no_alloc", _FLAG),
        ("load_mtp", _FLAG),
    )


class ContextParams(ctypes.Structure):
    """``llama_context_params``."""

    _fields_ = (
        ("n_ctx", _UNSIGNED),
        ("n_batch", _UNSIGNED),
        ("n_ubatch", _UNSIGNED),
        ("n_seq_max", _UNSIGNED),
        ("n_rs_seq", _UNSIGNED),
        ("n_outputs_max", _UNSIGNED),
        ("n_outputs_max_per_seq", _UNSIGNED),
        ("n_threads", _INT),
        ("n_threads_batch", _INT),
        ("ctx_type", _INT),
        ("rope_scaling_type", _INT),
        ("pooling_type", _INT),
        ("attention_type", _INT),
        ("flash_attn_type", _INT),
        ("rope_freq_base", _FLOAT),
        ("rope_freq_scale", _FLOAT),
        ("yarn_ext_factor", _FLOAT),
        ("yarn_attn_factor", _FLOAT),
        ("yarn_beta_fast", _FLOAT),
        ("yarn_beta_slow", _FLOAT),
        ("yarn_orig_ctx", _UNSIGNED),
        ("defrag_thold", _FLOAT),
        ("cb_eval", _POINTER),
        ("cb_eval_user_data", _POINTER),
        ("type_k", _INT),
        ("type_v", _INT),
        ("moe_cache_size", ctypes.c_size_t),
        ("abort_callback", _POINTER),
        ("abort_callback_data", _POINTER),
        ("embeddings", _FLAG),
        ("offload_kqv", _FLAG),
        ("no_perf", _FLAG),
        ("op_offload", _FLAG),
        ("swa_full", _FLAG),
        ("kv_unified", _FLAG),
        ("samplers", _POINTER),
        ("n_samplers", ctypes.c_size_t),
        ("ctx_other", _POINTER),
    )


class Batch(ctypes.Structure):
    """``llama_batch``."""

    _fields_ = (
        ("n_tokens", _INT),
        ("token", ctypes.POINTER(_INT)),
        ("embd", ctypes.POINTER(_FLOAT)),
        ("pos", ctypes.POINTER(_INT)),
        ("n_seq_id", ctypes.POINTER(_INT)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(_INT))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


_MODEL_DEFAULTS = {"split_mode": 1, "load_mode": _AUTO, "main_gpu": 0, "use_extra_bufts": True}
_CONTEXT_DEFAULTS = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "rope_scaling_type": _AUTO,
    "flash_attn_type": _AUTO,
    "yarn_beta_slow": -1.0,
    "defrag_thold": -1.0,
    "type_k": _F16,
    "type_v": _F16,
    "offload_kqv": True,
    "no_perf": True,
    "swa_full": True,
    "n_samplers": 0,
    "ctx_other": None,
}
"""Values of a layout that is known; another one has others in these places."""
_FUNCTIONS: dict[str, tuple[object, tuple[object, ...]]] = {
    "llama_model_default_params": (ModelParams, ()),
    "llama_context_default_params": (ContextParams, ()),
    "llama_backend_init": (None, ()),
    "llama_model_load_from_file": (_POINTER, (ctypes.c_char_p, ModelParams)),
    "llama_model_free": (None, (_POINTER,)),
    "llama_model_get_vocab": (_POINTER, (_POINTER,)),
    "llama_model_n_ctx_train": (_INT, (_POINTER,)),
    "llama_model_has_encoder": (_FLAG, (_POINTER,)),
    "llama_model_is_recurrent": (_FLAG, (_POINTER,)),
    "llama_model_is_hybrid": (_FLAG, (_POINTER,)),
    "llama_model_n_layer": (_INT, (_POINTER,)),
    "llama_model_n_embd": (_INT, (_POINTER,)),
    "llama_model_n_head": (_INT, (_POINTER,)),
    "llama_model_n_head_kv": (_INT, (_POINTER,)),
    "llama_model_meta_val_str": (
        _INT,
        (_POINTER, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t),
    ),
    "llama_vocab_n_tokens": (_INT, (_POINTER,)),
    "llama_adapter_lora_init": (_POINTER, (_POINTER, ctypes.c_char_p)),
    "llama_set_adapters_lora": (
        _INT,
        (_POINTER, ctypes.POINTER(_POINTER), ctypes.c_size_t, ctypes.POINTER(_FLOAT)),
    ),
    "llama_init_from_model": (_POINTER, (_POINTER, ContextParams)),
    "llama_free": (None, (_POINTER,)),
    "llama_n_ctx_seq": (_UNSIGNED, (_POINTER,)),
    "llama_n_batch": (_UNSIGNED, (_POINTER,)),
    "llama_get_memory": (_POINTER, (_POINTER,)),
    "llama_memory_clear": (None, (_POINTER, _FLAG)),
    "llama_memory_seq_rm": (_FLAG, (_POINTER, _INT, _INT, _INT)),
    "llama_memory_seq_cp": (None, (_POINTER, _INT, _INT, _INT, _INT)),
    "llama_batch_init": (Batch, (_INT, _INT, _INT)),
    "llama_batch_free": (None, (Batch,)),
    "llama_decode": (_INT, (_POINTER, Batch)),
    "llama_get_logits": (ctypes.POINTER(_FLOAT), (_POINTER,)),
    "llama_tokenize": (
        _INT,
        (_POINTER, ctypes.c_char_p, _INT, ctypes.POINTER(_INT), _INT, _FLAG, _FLAG),
    ),
}
_LOG_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, _POINTER)


class Log:
    """Errors that llama.cpp has logged; everything else that it logs is discarded."""

    def __init__(self) -> None:
        """Start without lines."""
        self._lines: list[str] = []
        self.callback = _LOG_CALLBACK(self._add)

    def _add(self, level: int, text: bytes, _data: object) -> None:
        if level == _ERROR and (line := text.decode("utf-8", "replace").strip()):
            self._lines = [*self._lines, line][-_KEPT_LINES:]

    @contextmanager
    def recording(self) -> Iterator[Log]:
        """Forget earlier errors."""
        self._lines = []
        yield self

    def text(self) -> str:
        """Return the last errors in one line."""
        return "; ".join(self._lines) or "it gave no reason"


_LOG = Log()
"""Log of the process: the library keeps a pointer to its callback."""


class Library:
    """The loaded library: functions by name, and its log."""

    def __init__(self, file: Path) -> None:
        """Load a library.

        Raises:
            RequirementError: it cannot be loaded, or its structures have another layout.
        """
        try:
            self._library = ctypes.CDLL(str(file))
            for name, (result, arguments) in _FUNCTIONS.items():
                function = getattr(self._library, name)
                function.restype, function.argtypes = result, arguments
        except (OSError, AttributeError) as error:
            raise RequirementError(
                f"the llama.cpp of {PACKAGE} {version(PACKAGE)} cannot be used here: {error}",
                remedy="install 'autoglm-compress[llamacpp]' again, or uninstall "
                f"{PACKAGE}: GGUF files are then written and not measured",
            ) from error
        self.log = _LOG
        self._library.llama_log_set(self.log.callback, None)
        self._check_layout()
        self._library.llama_backend_init()

    def _check_layout(self) -> None:
        checked = (
            (self._library.llama_model_default_params(), _MODEL_DEFAULTS),
            (self._library.llama_context_default_params(), _CONTEXT_DEFAULTS),
        )
        for params, known in checked:
            if any(getattr(params, name) != value for name, value in known.items()):
                raise RequirementError(
                    f"the llama.cpp of {PACKAGE} {version(PACKAGE)} has another binary interface "
                    "than the releases that this version was written for",
                    remedy="install the release that 'autoglm-compress[llamacpp]' names",
                )

    def __getattr__(self, name: str) -> ctypes._NamedFuncPointer:
        """Return a function of the library."""
        if name not in _FUNCTIONS:
            raise AttributeError(name)
        function: ctypes._NamedFuncPointer = getattr(self._library, name)
        return function


@cache
def load_library() -> Library:
    """Return the library, loaded once in a process.

    Raises:
        MissingExtraError: the package is not installed.
        RequirementError: the library cannot be loaded, or has another binary interface.
    """
    spec = find_spec(PACKAGE)
    if spec is None:
        raise MissingExtraError(PACKAGE, "executing GGUF files", "llamacpp")
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    files = [file for folder in folders for file in sorted(folder.glob(f"{PACKAGE}*.so"))]
    if not files:
        raise RequirementError(
            f"{PACKAGE} {version(PACKAGE)} has no compiled module for this system",
            remedy="install 'autoglm-compress[llamacpp]' again",
        )
    return Library(files[0])


def runtime_name() -> str:
    """Return name and build of the library, such as ``llama.cpp b11549``."""
    return f"llama.cpp b{version(PACKAGE).split('.')[2]}"
