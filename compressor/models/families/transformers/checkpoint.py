"""Checkpoints as modules of transformers. Nothing goes online, and no code of a checkpoint runs."""

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
from compressor.models.checkpoint.weights import weights_on_meta
from compressor.models.families.transformers.images import gather_images
from compressor.models.families.transformers.layouts import LAYOUTS
from compressor.models.quantized.description import QUANTIZATION_CONFIG, is_packed
from compressor.models.quantized.packed_checkpoint import dequantized

_CONFIG = "config.json"
_NO_FIELDS = {"model_type", "transformers_version", "auto_map", QUANTIZATION_CONFIG}
"""What of config.json is no field of the config's class."""


def built(tree: Mapping[str, Any]) -> nn.Module:
    """A freshly initialised module, from torch's global generator.

    Raises:
        ModelError: transformers has no such class, or does not take the config.
    """
    with _quiet():
        return _prepared(_class(tree)(_config(tree)))


def loaded(tree: Mapping[str, Any], folder: Path) -> nn.Module:
    """The checkpoint in ``folder``, in the dtype of its files.

    Raises:
        ModelError: the files do not hold the weights that config.json describes: all that is missing, too much or of another
            shape is named.
    """
    if is_packed(tree):
        return _unpacked(tree, folder)
    with _quiet():
        try:
            module, info = _class(tree).from_pretrained(
                str(folder),
                config=_config(tree),
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
        f"{name}: {list(found)} in the file, {list(wanted)} in the model"
        for name, found, wanted in sorted(info["mismatched_keys"])
    ]
    if problems:
        raise ModelError(
            f"{folder} does not hold the weights that {_CONFIG} describes:\n"
            + "\n".join(f"    {problem}" for problem in problems),
            remedy="take config.json and the safetensors files from the same checkpoint",
        )
    return _prepared(module)


def _unpacked(tree: Mapping[str, Any], folder: Path) -> nn.Module:
    """A packed checkpoint as a module that computes in float32, which holds its weights exactly."""
    with weights_on_meta(), _quiet():
        module = _class(tree)(_config(tree))
    found = {
        name: value.float() if value.is_floating_point() else value
        for name, value in dequantized(folder, tree)
    }
    module.load_state_dict(found, strict=False, assign=True)
    module.tie_weights()
    if missing := sorted(name for name, value in module.state_dict().items() if value.is_meta):
        raise ModelError(
            f"{folder} does not hold the weights that {_CONFIG} describes:\n"
            + "\n".join(f"    missing: {name}" for name in missing),
            remedy="take config.json and the safetensors files from the same checkpoint",
        )
    return _prepared(module)


def streamed(tree: Mapping[str, Any]) -> nn.Module:
    """The module without its weights, which are on the device ``meta``; in eval mode."""
    with weights_on_meta(), _quiet():
        return _prepared(_class(tree)(_config(tree))).eval().requires_grad_(False)


def saved(
    module: nn.Module, tree: Mapping[str, Any], folder: Path, companions: Path | None
) -> None:
    """Write what ``from_pretrained`` reads; equal weights give equal bytes.

    Args:
        module: a module of transformers.
        tree: config.json; weights are cast to the dtype that it names.
        folder: where to.
        companions: a checkpoint whose other files, such as the tokenizer's, come along.
    """
    text = tree.get("dtype") or tree.get("torch_dtype")
    dtype = getattr(torch, str(text)) if text else None
    state = {
        name: tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
        for name, tensor in module.state_dict().items()
    }
    with writing(folder), _quiet():
        folder.mkdir(parents=True, exist_ok=True)
        module.save_pretrained(str(folder), state_dict=state)  # type: ignore[operator]
        if companions is not None:
            for file in sorted(companions.iterdir()):
                if file.is_file() and file.name != _CONFIG and ".safetensors" not in file.name:
                    shutil.copyfile(file, folder / file.name)
        (folder / _CONFIG).write_text(
            json.dumps(dict(tree), indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )


def _class(tree: Mapping[str, Any]) -> Any:
    name = tree["architectures"][0]
    found = getattr(transformers, name, None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise ModelError(
            f"`architectures` names {name!r}, which is no model class of transformers {transformers.__version__}",
            remedy="see the checkpoint's config.json; code that comes with a checkpoint is never run",
        )
    return found


def _config(tree: Mapping[str, Any]) -> Any:
    fields = {name: value for name, value in tree.items() if name not in _NO_FIELDS}
    try:
        return transformers.AutoConfig.for_model(tree["model_type"], **fields)
    except Exception as error:  # its validators raise classes of several libraries
        raise ModelError(f"transformers does not take this {_CONFIG}: {error}") from error


def _prepared(module: nn.Module) -> nn.Module:
    """Whole windows go through at once: nothing is gained by keeping keys and values. Images come sample by sample."""
    config: Any = module.config
    config.get_text_config().use_cache = False
    if LAYOUTS[config.model_type].vision is not None:
        module.register_forward_pre_hook(gather_images, with_kwargs=True)
    return module


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the library says about itself."""
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
