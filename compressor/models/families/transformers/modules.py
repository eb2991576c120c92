"""Modules of transformers from config.json, and checkpoints written from them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from compressor.artifacts.errors_from_os import writing
from compressor.errors import ModelError
from compressor.foreign_files.libraries import reason_of
from compressor.models.checkpoint.companions import copy_companions
from compressor.models.checkpoint.layout import CONFIG
from compressor.models.checkpoint.weights import weights_on_meta
from compressor.models.families.transformers.images import accept_padded_images
from compressor.models.quantized.weight_grid import QUANTIZATION_CONFIG

_NO_CLASS_FIELDS = {"model_type", "transformers_version", "auto_map", QUANTIZATION_CONFIG}
"""Fields of config.json that are no fields of the config's class."""
_CALL_OPTIONS = {
    "_attn_implementation",
    "attn_implementation",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "torchscript",
}
"""Options of the last call before the config was saved: kernels of its machine, and outputs."""


def build_module(tree: Mapping[str, Any]) -> nn.Module:
    """Return a module initialised from torch's global generator.

    Raises:
        ModelError: transformers has no such class, or rejects the config.
    """
    with _quiet():
        return _prepare(_construct(tree))


def build_on_meta(tree: Mapping[str, Any]) -> PreTrainedModel:
    """Return the module in eval mode, its parameters on the device ``meta``.

    Raises:
        ModelError: as ``build_module``.
    """
    with weights_on_meta(), _quiet():
        module = _prepare(_construct(tree)).requires_grad_(False)
        module.train(False)
        return module


def build_without_data(tree: Mapping[str, Any]) -> PreTrainedModel:
    """Return the module in eval mode, with parameters and buffers on the device ``meta``.

    Attention is computed by plain products: other implementations read values of masks.

    Raises:
        ModelError: as ``build_module``.
    """
    with torch.device("meta"), _quiet():
        module = _prepare(_construct(tree)).requires_grad_(False)
        module.set_attn_implementation("eager")
        module.train(False)
        return module


def save_checkpoint(
    module: nn.Module, tree: Mapping[str, Any], folder: Path, companions: Path | None
) -> None:
    """Write a checkpoint that ``from_pretrained`` reads; equal weights give equal bytes.

    Args:
        module: a module of transformers.
        tree: config.json; weights are cast to the dtype that it names.
        folder: the folder to write to.
        companions: a checkpoint whose tokenizer, processor and licence are copied.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    dtype_name = tree.get("dtype") or tree.get("torch_dtype")
    dtype = getattr(torch, str(dtype_name)) if dtype_name else None
    state = {
        name: tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
        for name, tensor in module.state_dict().items()
    }
    with writing(folder), _quiet():
        folder.mkdir(parents=True, exist_ok=True)
        module.save_pretrained(str(folder), state_dict=state)  # type: ignore[operator]
        if companions is not None:
            copy_companions(companions, folder)
        (folder / CONFIG).write_text(
            json.dumps(dict(tree), indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )


def write_packed_config(
    tree: Mapping[str, Any], folder: Path, parent: Path, fields: Mapping[str, Any]
) -> None:
    """Write the config.json of a packed checkpoint, and copy the files beside the weights.

    Args:
        tree: config.json of the float checkpoint.
        folder: the folder to write to.
        parent: the float checkpoint.
        fields: fields that are added or replaced.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    config = {**tree, **fields}
    config.pop("torch_dtype", None)
    with writing(folder):
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (folder / CONFIG).write_text(text, encoding="utf-8")
        copy_companions(parent, folder)


def _construct(tree: Mapping[str, Any]) -> PreTrainedModel:
    """Return a new instance of the class that config.json names."""
    model_class = _model_class(tree)
    left_out = _NO_CLASS_FIELDS | _CALL_OPTIONS
    fields = {name: value for name, value in tree.items() if name not in left_out}
    fields = deepcopy(fields)  # the classes write into nested mappings
    # Infinite values, such as limits of time steps, are stored as {"__float__": "Infinity"}.
    fields = transformers.PreTrainedConfig._decode_special_floats(fields)
    for part in fields.values():
        if isinstance(part, dict):
            for name in _CALL_OPTIONS:
                part.pop(name, None)
    try:
        return model_class(transformers.AutoConfig.for_model(tree["model_type"], **fields))
    except ImportError as error:
        raise ModelError(
            f"{model_class.__name__} needs a library that is not installed: {reason_of(error)}",
            remedy="install the library that it names",
        ) from error
    except Exception as error:  # its validators raise classes of several libraries
        raise ModelError(f"transformers rejects this {CONFIG}: {error}") from error


def _model_class(tree: Mapping[str, Any]) -> type[PreTrainedModel]:
    """Return the class that config.json names.

    Raises:
        ModelError: transformers has no such class, or does not know the ``model_type``.
    """
    version, model_type = transformers.__version__, tree["model_type"]
    remedy = "see the checkpoint's config.json; code that comes with a checkpoint is never run"
    if model_type not in transformers.CONFIG_MAPPING:
        raise ModelError(
            f"`model_type` {model_type!r} is not known to transformers {version}", remedy=remedy
        )
    name = tree["architectures"][0]
    model_class = getattr(transformers, name, None)
    if not (isinstance(model_class, type) and issubclass(model_class, PreTrainedModel)):
        raise ModelError(
            f"`architectures` names {name!r}, which is no model class of transformers {version}",
            remedy=remedy,
        )
    return model_class


def _prepare(module: PreTrainedModel) -> PreTrainedModel:
    """Turn the cache off, since whole windows are processed at once, and accept padded images."""
    config: Any = module.config
    for part in (config, config.get_text_config()):
        if hasattr(part, "use_cache"):
            part.use_cache = False
    accept_padded_images(module)
    return module


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence log messages and progress bars of transformers."""
    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
