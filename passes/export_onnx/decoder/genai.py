"""``genai_config.json``: what onnxruntime-genai reads beside a decoder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.artifacts.files import write_atomic
from compressor.graphs.decoder.architecture import Architecture
from compressor.graphs.decoder.interface import (
    ATTENTION_MASK,
    INPUT_IDS,
    LOGITS,
    PAST_PREFIX,
    PRESENT_PREFIX,
)
from compressor.graphs.files import MODEL
from compressor.models.families.transformers.layouts import text_config

FILE = "genai_config.json"
_KNOWN = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma3_text"})
"""Its names for architectures; others are a plain decoder to it."""
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def write_genai_config(
    tree: Mapping[str, Any], architecture: Architecture, model: Path, out: Path
) -> None:
    """Names of inputs and outputs, sizes, special tokens, and a greedy search over one buffer of keys and values."""
    decoder = architecture.decoder
    tokens = _special_tokens(tree, model, decoder.vocabulary)
    facts = {
        "model": {
            **tokens,
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
            "type": tree["model_type"] if tree["model_type"] in _KNOWN else "decoder",
            "vocab_size": decoder.vocabulary,
        },
        "search": {
            "do_sample": False,
            "early_stopping": True,
            "max_length": architecture.context,
            "min_length": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": True,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 1,
            "top_p": 1.0,
        },
    }
    write_atomic(out / FILE, (json.dumps(facts, indent=1) + "\n").encode())


def _special_tokens(tree: Mapping[str, Any], model: Path, vocabulary: int) -> dict[str, Any]:
    """From generation_config.json, else from config.json; padding is the end where nothing is said.

    Tokens beyond the vocabulary, which a class's defaults may name, are left out: onnxruntime-genai opens no file that has them.
    """
    file = model / "generation_config.json"
    told = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    sources = (told, text_config(tree), tree)
    said = {
        name: next((one[name] for one in sources if one.get(name) is not None), None)
        for name in _TOKENS
    }
    found = {name: _within(value, vocabulary) for name, value in said.items()}
    end = found["eos_token_id"]
    if found["pad_token_id"] is None:
        found["pad_token_id"] = end[0] if isinstance(end, list) else end
    return {name: value for name, value in found.items() if value is not None}


def _within(token: Any, vocabulary: int) -> Any:
    """A token, or some; None where none is within the vocabulary."""
    some = [
        one
        for one in (token if isinstance(token, list) else [token])
        if one is not None and 0 <= one < vocabulary
    ]
    return some or None if isinstance(token, list) else next(iter(some), None)
