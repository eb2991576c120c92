"""``genai_config.json``, which onnxruntime-genai reads beside a decoder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.artifacts.files import write_atomic
from compressor.graphs.decoder.architecture import DecoderArchitecture
from compressor.graphs.decoder.interface import (
    ATTENTION_MASK,
    INPUT_IDS,
    LOGITS,
    PAST_PREFIX,
    PRESENT_PREFIX,
)
from compressor.graphs.files import MODEL
from compressor.models.checkpoint.generation_settings import read_special_tokens
from compressor.models.families.transformers.layouts import text_config

FILE = "genai_config.json"
_MODEL_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma3_text"})
"""Architectures that onnxruntime-genai names; it runs others as a plain ``decoder``."""
_SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def write_genai_config(
    tree: Mapping[str, Any], architecture: DecoderArchitecture, checkpoint: Path, out: Path
) -> None:
    """Write names of inputs and outputs, sizes, special tokens, and a greedy search.

    Args:
        tree: the checkpoint's config.json.
        architecture: of the decoder.
        checkpoint: the folder with generation_config.json, if there is one.
        out: the folder to write to.
    """
    decoder = architecture.decoder
    config = {
        "model": {
            **_special_tokens(tree, checkpoint, decoder.vocabulary),
            "context_length": architecture.context,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": MODEL,
                "head_size": decoder.head_width,
                "hidden_size": decoder.hidden,
                "inputs": {
                    INPUT_IDS: INPUT_IDS,
                    ATTENTION_MASK: ATTENTION_MASK,
                    "past_key_names": f"{PAST_PREFIX}%d.key",
                    "past_value_names": f"{PAST_PREFIX}%d.value",
                },
                "outputs": {
                    LOGITS: LOGITS,
                    "present_key_names": f"{PRESENT_PREFIX}%d.key",
                    "present_value_names": f"{PRESENT_PREFIX}%d.value",
                },
                "num_attention_heads": decoder.heads,
                "num_hidden_layers": decoder.layers,
                "num_key_value_heads": decoder.key_heads,
            },
            "type": tree["model_type"] if tree["model_type"] in _MODEL_TYPES else "decoder",
            "vocab_size": decoder.vocabulary,
        },
        "search": _greedy_search(architecture.context),
    }
    write_atomic(out / FILE, (json.dumps(config, indent=1) + "\n").encode())


def _greedy_search(max_length: int) -> dict[str, Any]:
    return {
        "do_sample": False,
        "early_stopping": True,
        "max_length": max_length,
        "min_length": 0,
        "num_beams": 1,
        "num_return_sequences": 1,
        "past_present_share_buffer": True,
        "repetition_penalty": 1.0,
        "temperature": 1.0,
        "top_k": 1,
        "top_p": 1.0,
    }


def _special_tokens(tree: Mapping[str, Any], checkpoint: Path, vocabulary: int) -> dict[str, Any]:
    """Return special tokens from generation_config.json, else from config.json.

    Padding defaults to the end-of-sequence token. Tokens beyond the vocabulary, which the defaults
    of a class may name, are left out: onnxruntime-genai refuses files that have them.
    """
    sources = (read_special_tokens(checkpoint), text_config(tree), tree)
    tokens = {
        name: _within_vocabulary(
            next((source[name] for source in sources if source.get(name) is not None), None),
            vocabulary,
        )
        for name in _SPECIAL_TOKENS
    }
    end = tokens["eos_token_id"]
    if tokens["pad_token_id"] is None:
        tokens["pad_token_id"] = end[0] if isinstance(end, list) else end
    return {name: token for name, token in tokens.items() if token is not None}


def _within_vocabulary(token: Any, vocabulary: int) -> Any:
    """Return a token, or those of a list, that are in the vocabulary; None if none is."""
    tokens = token if isinstance(token, list) else [token]
    valid = [each for each in tokens if each is not None and 0 <= each < vocabulary]
    if isinstance(token, list):
        return valid or None
    return valid[0] if valid else None
