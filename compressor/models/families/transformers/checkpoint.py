"""Checkpoints as modules of transformers.

Nothing is downloaded, and no code that comes with a checkpoint is run.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.utils import logging

from compressor.artifacts.errors_from_os import writing
from compressor.errors import ModelError
from compressor.models.checkpoint.layout import CONFIG
from compressor.models.checkpoint.weights import weights_on_meta
from compressor.models.families.transformers.images import gather_images
from compressor.models.families.transformers.layouts import LAYOUTS
from compressor.models.quantized.packed_checkpoint import read_dequantized
from compressor.models.quantized.weight_grid import QUANTIZATION_CONFIG, is_packed

_NO_CLASS_FIELDS = {"model_type", "transformers_version", "auto_map", QUANTIZATION_CONFIG}
"""Fields of config.json that are no fields of the config's class."""


def build_module(tree: Mapping[str, Any]) -> nn.Module:
    """Return a module initialised from torch's global generator.

    Raises:
        ModelError: transformers has no such class, or rejects the config.
    """
    with _quiet():
        return _prepare(_class_of(tree)(_config_of(tree)))


def build_on_meta(tree: Mapping[str, Any]) -> nn.Module:
    """Return the module in eval mode, its parameters on the device ``meta``.

    Raises:
        ModelError: as ``build_module``.
    """
    with weights_on_meta(), _quiet():
        return _prepare(_class_of(tree)(_config_of(tree))).eval().requires_grad_(False)


def load_checkpoint(tree: Mapping[str, Any], folder: Path) -> nn.Module:
    """Return the module with the weights of a folder, in the dtype of the files.

    A packed checkpoint is dequantized to float32, which holds its weights exactly.

    Args:
        tree: config.json.
        folder: the checkpoint.

    Raises:
        ModelError: weights are missing, unexpected or of another shape; the message names all.
    """
    if is_packed(tree):
        return _load_packed(tree, folder)
    with _quiet():
        try:
            module, info = _class_of(tree).from_pretrained(
                str(folder),
                config=_config_of(tree),
                dtype="auto",
                use_safetensors=True,
                local_files_only=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise ModelError(
                f"{folder} cannot be loaded: {error}", remedy="copy or save it again"
            ) from error
    problems = [f"missing: {name}" for name in sorted(info["missing_keys"])]
    problems += [f"unexpected: {name}" for name in sorted(info["unexpected_keys"])]
    problems += [
        f"{name}: {list(stored)} in the file, {list(expected)} in the model"
        for name, stored, expected in sorted(info["mismatched_keys"])
    ]
    _raise_if(problems, folder)
    return _prepare(module)


def _load_packed(tree: Mapping[str, Any], folder: Path) -> nn.Module:
    with weights_on_meta(), _quiet():
        module = _class_of(tree)(_config_of(tree))
    weights = {
        name: value.float() if value.is_floating_point() else value
        for name, value in read_dequantized(folder, tree)
    }
    module.load_state_dict(weights, strict=False, assign=True)
    module.tie_weights()
    missing = sorted(name for name, value in module.state_dict().items() if value.is_meta)
    _raise_if([f"missing: {name}" for name in missing], folder)
    return _prepare(module)


def _raise_if(problems: list[str], folder: Path) -> None:
    if problems:
        raise ModelError(
            f"{folder} does not hold the weights that {CONFIG} describes:\n"
            + "\n".join(f"    {problem}" for problem in problems),
            remedy="take config.json and the safetensors files from the same checkpoint",
        )


def save_checkpoint(
    module: nn.Module, tree: Mapping[str, Any], folder: Path, companions: Path | None
) -> None:
    """Write a checkpoint that ``from_pretrained`` reads; equal weights give equal bytes.

    Args:
        module: a module of transformers.
        tree: config.json; weights are cast to the dtype that it names.
        folder: the folder to write to.
        companions: a checkpoint whose other files, such as the tokenizer's, are copied.

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
            for file in sorted(companions.iterdir()):
                if file.is_file() and file.name != CONFIG and ".safetensors" not in file.name:
                    shutil.copyfile(file, folder / file.name)
        (folder / CONFIG).write_text(
            json.dumps(dict(tree), indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )


def _class_of(tree: Mapping[str, Any]) -> Any:
    name = tree["architectures"][0]
    model_class = getattr(transformers, name, None)
    if not (
        isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)
    ):
        raise ModelError(
            f"`architectures` names {name!r}, which is no model class of transformers "
            f"{transformers.__version__}",
            remedy="see the checkpoint's config.json; code that comes with a checkpoint is never "
            "run",
        )
    return model_class


def _config_of(tree: Mapping[str, Any]) -> Any:
    fields = {name: value for name, value in tree.items() if name not in _NO_CLASS_FIELDS}
    try:
        return transformers.AutoConfig.for_model(tree["model_type"], **fields)
    except Exception as error:  # its validators raise classes of several libraries
        raise ModelError(f"transformers rejects this {CONFIG}: {error}") from error


def _prepare(module: nn.Module) -> nn.Module:
    """Turn the cache off, since whole windows are processed at once, and accept padded images."""
    config: Any = module.config
    config.get_text_config().use_cache = False
    if LAYOUTS[config.model_type].vision is not None:
        module.register_forward_pre_hook(gather_images, with_kwargs=True)
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
