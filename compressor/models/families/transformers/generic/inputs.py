"""Inputs of a class of transformers, from its ``forward`` and its config."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from transformers import PreTrainedModel

from compressor.errors import ModelError
from compressor.models.capabilities.signature import RECORDING_AXES, InputSpec
from compressor.models.families.transformers.generic.tasks import Task
from compressor.models.families.transformers.images import class_image_inputs

TOKENS, MASK, TYPES = "input_ids", "attention_mask", "token_type_ids"
DECODER_TOKENS = "decoder_input_ids"
PIXELS = "pixel_values"
FEATURES, SAMPLES = "input_features", "input_values"
SERIES = "past_values"
_SEQUENCE = ("batch", "tokens")
_DECODER_SEQUENCE = ("batch", "decoder_tokens")
_LENGTH_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions")
_TEXT_LENGTH_FIELDS = ("max_text_len",)
"""Fields for the longest text that a detector takes, whatever its text encoder does."""
_POSITIONS_AHEAD = {"prophetnet": 1}
"""Model type to the positions behind the last token whose embeddings its decoder reads too."""
_CHANNEL_FIELDS = ("num_channels", "in_channels", "in_chans", "num_input_channels")
_VISION_PARTS = ("vision_config", "vision", "encoder", "backbone_config")
_DESCRIBE_REMEDY = (
    "write a function that builds the model, and describe its inputs: "
    "`model: {python: my_model.py:build, weights: …, inputs: …}`"
)
_BIN_FIELDS = ("num_mel_bins", "input_feat_per_channel", "feature_projection_input_dim")


def class_inputs(module: PreTrainedModel, task: Task) -> Iterator[tuple[InputSpec, ...]]:
    """Yield possible inputs of a class in the order of its ``forward``, the most likely first.

    They are those of the task, and every parameter of ``forward`` without a default. A decoder
    with a vision tower also has optional inputs for images. Behind them come other layouts of the
    arrays, and then up to two inputs more: some classes need what ``forward`` has a default for.

    Args:
        module: the class, built from its config; its weights are not used.
        task: the task of the class.

    Raises:
        ModelError: ``forward`` requires an input that is not known here.
    """
    parameters = _parameters(module)
    names = dict.fromkeys(_task_inputs(module, task))
    names |= dict.fromkeys(
        name for name, parameter in parameters.items() if parameter.default is parameter.empty
    )
    if unknown := [name for name in names if name not in _LAYOUTS]:
        raise _unknown_inputs(module, unknown)
    others = [name for name in parameters if name in _ALTERNATIVES and name not in names]
    for count in range(_MOST_ADDED + 1):
        for added in combinations(others, count):
            chosen = [name for name in parameters if name in names or name in added]
            for layout in range(max((len(_LAYOUTS[name]) for name in chosen), default=1)):
                yield _specs(module, task, chosen, layout)


def has_unknown_main_input(module: PreTrainedModel) -> bool:
    """Return True if the shape of a class's main input does not follow from its config."""
    return module.main_input_name in _parameters(module) and module.main_input_name not in _LAYOUTS


def inputs_error(
    module: PreTrainedModel, inputs: Sequence[InputSpec], error: Exception
) -> ModelError:
    """Return the error for a class that runs on none of its possible inputs.

    Args:
        module: the class.
        inputs: the most likely inputs.
        error: the exception that it raised on them.
    """
    if has_unknown_main_input(module):
        return _unknown_inputs(module, [module.main_input_name])
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = f"{type(error).__name__}: {lines[0] if lines else 'no details'}"
    names = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in inputs)
    return ModelError(
        f"{type(module).__name__} does not run on the inputs that follow from config.json, "
        f"{names}: {reason}",
        remedy=_DESCRIBE_REMEDY,
    )


def _unknown_inputs(module: PreTrainedModel, names: Sequence[str]) -> ModelError:
    return ModelError(
        f"{type(module).__name__} requires the input {', '.join(names)}, whose shape does not "
        "follow from config.json",
        remedy=_DESCRIBE_REMEDY,
    )


def _parameters(module: PreTrainedModel) -> dict[str, inspect.Parameter]:
    """Return the named parameters of ``forward`` without ``self``."""
    parameters = inspect.signature(module.forward).parameters
    variable = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    return {name: value for name, value in parameters.items() if value.kind not in variable}


def _specs(
    module: PreTrainedModel, task: Task, names: list[str], layout: int
) -> tuple[InputSpec, ...]:
    """Return the inputs of those names, each in its layout of that number or its last."""
    specs = {}
    for name in names:
        layouts = _LAYOUTS[name]
        specs[name] = layouts[min(layout, len(layouts) - 1)](module, name)
        if task.chooses and specs[name].shape == _SEQUENCE:
            specs[name] = replace(specs[name], shape=("batch", "choices", "tokens"))
    images = {} if task.encodes else {spec.name: spec for spec in class_image_inputs(type(module))}
    return tuple({**specs, **images}.values())


def _task_inputs(module: PreTrainedModel, task: Task) -> Iterator[str]:
    names = _parameters(module)
    takes_text = "text" in task.inputs and TOKENS in names
    if takes_text:
        yield TOKENS
        if task.encodes and MASK in names:
            yield MASK
        if task.encodes and TYPES in names and _has_token_types(module):
            yield TYPES
    if not takes_text or (task.encodes and "and" in task.inputs):
        yield from (name for name in (PIXELS, FEATURES, SAMPLES) if name in names)
        if MASK in names and _masks_recordings(module, task):
            yield MASK
    if DECODER_TOKENS in names and (task.decodes or not takes_text):
        yield DECODER_TOKENS


def _masks_recordings(module: PreTrainedModel, task: Task) -> bool:
    """Return True for a class that takes recordings of any length and was trained with masks.

    Those of wav2vec 2.0 whose first norm is over groups of channels were not: they take padding for
    silence.
    """
    if task.inputs != "audio" or _groups_channels(module):
        return False
    name = SAMPLES if SAMPLES in _parameters(module) else FEATURES
    return not RECORDING_AXES.isdisjoint(_LAYOUTS[name][0](module, name).shape)


def _groups_channels(module: PreTrainedModel) -> bool:
    return getattr(module.config, "feat_extract_norm", None) == "group"


def _has_token_types(module: PreTrainedModel) -> bool:
    return int(getattr(module.config.get_text_config(), "type_vocab_size", 0) or 0) > 1


def _tokens(module: PreTrainedModel, name: str) -> InputSpec:
    config: Any = module.config.get_text_config()
    end = getattr(config, "eos_token_id", None)
    return InputSpec(
        name,
        "int64",
        _SEQUENCE,
        below=config.vocab_size,
        longest=_longest(module, config),
        last=end if isinstance(end, int) and 0 <= end < config.vocab_size else None,
    )


def _mask(module: PreTrainedModel, name: str) -> InputSpec:
    """Return the mask of tokens, or of the samples or frames of recordings."""
    parameters = _parameters(module)
    if TOKENS in parameters:
        return replace(_tokens(module, name), below=2, last=None)
    axis = "samples" if SAMPLES in parameters else "frames"
    return InputSpec(name, "int64", ("batch", axis), below=2)


def _types(module: PreTrainedModel, name: str) -> InputSpec:
    config: Any = module.config.get_text_config()
    return replace(_tokens(module, name), below=int(config.type_vocab_size), last=None)


def _decoder_tokens(module: PreTrainedModel, name: str) -> InputSpec:
    config: Any = module.config.get_text_config(decoder=True)
    vocabulary = getattr(config, "decoder_vocab_size", None) or config.vocab_size
    longest = _first(config, ("max_target_positions", "max_decoder_position_embeddings"))
    longest = longest or _longest(module, config)
    if longest:
        longest -= _POSITIONS_AHEAD.get(module.config.model_type, 0)
    return InputSpec(name, "int64", _DECODER_SEQUENCE, below=vocabulary, longest=longest)


def _longest(module: PreTrainedModel, config: Any) -> int | None:
    """Return the number of positions; None where they are not limited by a table or the config.

    Tables whose first positions stand for padding, as RoBERTa's, hold fewer.
    """
    stated = [_first(config, _LENGTH_FIELDS), _first(module.config, _TEXT_LENGTH_FIELDS)]
    tables = [
        len(layer.get_parameter("weight")) - padding - 1
        for name, layer in module.named_modules()
        if "position" in name.rpartition(".")[2]
        and isinstance(padding := getattr(layer, "padding_idx", None), int)
        and "weight" in dict(layer.named_parameters(recurse=False))
    ]
    return min([*tables, *(limit for limit in stated if limit)], default=None)


def _pixels(module: PreTrainedModel, name: str) -> InputSpec:
    """Return images [B, C, H, W]; sizes that config.json does not fix are variable."""
    config = _vision_part(module.config)
    channels = _first(config, _CHANNEL_FIELDS) or 3
    size = getattr(config, "image_size", None)
    if isinstance(size, dict):
        size = (size.get("height"), size.get("width"))
    pair = tuple(size) if isinstance(size, list | tuple) else (size, size)
    names = ("height", "width")
    sizes = [
        axis if isinstance(axis, int) else name for axis, name in zip(pair, names, strict=True)
    ]
    return InputSpec(name, "float32", ("batch", int(channels), *sizes))


def _frames(module: PreTrainedModel, name: str) -> InputSpec:
    """Return videos [B, F, C, H, W] of the config's number of frames."""
    spec = _pixels(module, name)
    frames = _first(module.config, ("num_frames",)) or "frames"
    return replace(spec, shape=("batch", frames, *spec.shape[1:]))


def _features(module: PreTrainedModel, name: str) -> InputSpec:
    """Return spectrograms [B, bins, frames], or [B, frames, bins] where nothing fixes the frames.

    A class that names ``max_source_positions`` for a convolution of stride 2, as Whisper's, takes
    twice as many frames.
    """
    config, bins = _spectrogram(module)
    positions = getattr(config, "max_source_positions", None)
    if hasattr(config, "input_feat_per_channel") or positions is None:
        return InputSpec(name, "float32", ("batch", "frames", bins))
    return InputSpec(name, "float32", ("batch", bins, 2 * int(positions)))


def _bins_last(module: PreTrainedModel, name: str) -> InputSpec:
    """Return spectrograms [B, frames, bins]."""
    return InputSpec(name, "float32", ("batch", "frames", _spectrogram(module)[1]))


def _bins_of_one_channel(module: PreTrainedModel, name: str) -> InputSpec:
    """Return spectrograms [B, 1, frames, bins]."""
    return InputSpec(name, "float32", ("batch", 1, "frames", _spectrogram(module)[1]))


def _spectrogram(module: PreTrainedModel) -> tuple[Any, int]:
    """Return the config of the part that reads spectrograms, and their number of bins."""
    config = _part(module.config, ("audio_config", "encoder_config"))
    return config, int(_first(config, _BIN_FIELDS) or 80)


def _samples(module: PreTrainedModel, name: str) -> InputSpec:
    """Return waveforms [B, samples]; spectrograms [B, frames, bins] where the config has bins."""
    config = _part(module.config, ("audio_config", "encoder_config"))
    bins = getattr(config, "num_mel_bins", None)
    if bins is None or not hasattr(config, "max_length"):
        return InputSpec(name, "float32", ("batch", "samples"))
    return InputSpec(name, "float32", ("batch", int(config.max_length), int(bins)))


def _channels_of_samples(module: PreTrainedModel, name: str) -> InputSpec:
    """Return waveforms [B, channels, samples]."""
    channels = _first(module.config, ("audio_channels",)) or 1
    return InputSpec(name, "float32", ("batch", channels, "samples"))


def _series(module: PreTrainedModel, name: str) -> InputSpec:
    """Return time series [B, time, channels]."""
    length = _first(module.config, ("context_length",)) or "time"
    channels = _first(module.config, ("num_input_channels", "input_size")) or 1
    return InputSpec(name, "float32", ("batch", length, channels))


_Describe = Callable[[PreTrainedModel, str], InputSpec]
_LAYOUTS: dict[str, tuple[_Describe, ...]] = {
    TOKENS: (_tokens,),
    MASK: (_mask,),
    TYPES: (_types,),
    DECODER_TOKENS: (_decoder_tokens,),
    PIXELS: (_pixels, _frames),
    FEATURES: (_features, _bins_last, _bins_of_one_channel),
    SAMPLES: (_samples, _channels_of_samples),
    SERIES: (_series,),
}
"""Name of an input to the functions that describe it, the most frequent layout first."""
_ALTERNATIVES = (PIXELS, FEATURES, SAMPLES, DECODER_TOKENS)
"""Inputs that are tried beside those of the task."""
_MOST_ADDED = 2


def _vision_part(config: Any) -> Any:
    """Return the nested config with the size of images; without one, the first that is nested."""
    first = part = _part(config, _VISION_PARTS)
    while not hasattr(part, "image_size"):
        inner = _part(part, _VISION_PARTS)
        if inner is part:
            return first
        part = inner
    return part


def _part(config: Any, names: tuple[str, ...]) -> Any:
    """Return the first nested config of a name; the config itself if it has none."""
    parts = (getattr(config, name, None) for name in names)
    return next((part for part in parts if hasattr(part, "to_dict")), config)


def _first(config: Any, names: tuple[str, ...]) -> int | None:
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if isinstance(value, int) and value > 0), None)
