"""Tiny speech models, with the settings of generation that real checkpoints have."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

_VOCABULARY = 96
_SIZES = {"encoder_layers": 1, "decoder_layers": 1, "d_model": 32}
_HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
_FFN = {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
_WHISPER = {**_SIZES, **_HEADS, **_FFN, "num_mel_bins": 16, "max_source_positions": 50}
END, START = 2, 3
LANGUAGES = {"<|en|>": 80, "<|de|>": 81, "<|fr|>": 82}
TASKS = {"transcribe": 83, "translate": 84}
NO_TIMESTAMPS = 85
_CONFIGS: dict[str, dict[str, Any]] = {
    "whisper": {**_WHISPER, "max_target_positions": 40},
    "speech_to_text": {
        **_SIZES,
        **_HEADS,
        **_FFN,
        "input_feat_per_channel": 16,
        "conv_channels": 32,
        "max_source_positions": 200,
        "max_target_positions": 40,
    },
    "moonshine": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "encoder_num_hidden_layers": 1,
        "decoder_num_hidden_layers": 1,
        "encoder_num_attention_heads": 2,
        "decoder_num_attention_heads": 2,
        "max_position_embeddings": 64,
    },
}
_CLASSES = {
    "whisper": "WhisperForConditionalGeneration",
    "speech_to_text": "Speech2TextForConditionalGeneration",
    "moonshine": "MoonshineForConditionalGeneration",
}


def save_speech_model(
    folder: Path, name: str, sizes: Mapping[str, int] | None = None, **generation: Any
) -> SimpleNamespace:
    """Save a random model with a tokenizer whose word ``w7`` is token 7; its artifact.

    Args:
        folder: the folder to write to.
        name: ``whisper``, ``speech_to_text`` or ``moonshine``.
        sizes: fields of config.json that differ from the smallest model.
        generation: fields of generation_config.json.
    """
    torch.manual_seed(1)
    special = {"pad_token_id": 1, "bos_token_id": START, "eos_token_id": END}
    fields = {**_CONFIGS[name], **(sizes or {}), **special, "vocab_size": _VOCABULARY}
    config = transformers.AutoConfig.for_model(name, **fields, decoder_start_token_id=START)
    model = getattr(transformers, _CLASSES[name])(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.copy_(2 * torch.randn_like(weight) / weight[0].numel() ** 0.5)
    settings = {**special, "decoder_start_token_id": START, **generation}
    settings["_from_model_config"] = False  # otherwise transformers ignores the file
    for field, value in settings.items():
        setattr(model.generation_config, field, value)
    model.save_pretrained(folder)
    words = {f"w{number}": number for number in range(_VOCABULARY)}
    named = {**LANGUAGES, "<|transcribe|>": 83, "<|translate|>": 84, "<|notimestamps|>": 85}
    named |= {"<pad>": 1, "</s>": END, "<s>": START}
    words = {word: number for word, number in words.items() if number not in named.values()}
    tokenizer = Tokenizer(WordLevel(words | named, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=list(named)[:6],
    ).save_pretrained(folder)
    _extractor(name).save_pretrained(folder)
    return SimpleNamespace(model=folder, manifest=SimpleNamespace(id="ab12", format="torch"))


def multilingual() -> dict[str, Any]:
    """Return the fields of generation_config.json that Whispers of several languages have."""
    return {
        "is_multilingual": True,
        "lang_to_id": LANGUAGES,
        "task_to_id": TASKS,
        "no_timestamps_token_id": NO_TIMESTAMPS,
        "forced_decoder_ids": [[1, None], [2, TASKS["transcribe"]]],
        "suppress_tokens": [10, 11, 12],
        "begin_suppress_tokens": [20, END],
    }


def _extractor(name: str) -> Any:
    if name == "whisper":
        return transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=1)
    if name == "speech_to_text":
        return transformers.Speech2TextFeatureExtractor(feature_size=16, num_mel_bins=16)
    return transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)
