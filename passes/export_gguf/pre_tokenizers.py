"""Names by which llama.cpp knows how a byte-level BPE tokenizer splits text before merging.

llama.cpp implements each rule in code and finds it by name (`tokenizer.ggml.pre`). The rule of a
tokenizer is read from its tokenizer.json, whatever its vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compressor.errors import RequirementError

_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
_START = r"[^\r\n\p{L}\p{N}]?"
_SLASHED_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_THREE_DIGITS = f"{_ENDINGS}|{_WORDS}|\\p{{N}}{{1,3}}|{_MARKS}|{_SPACES}"
_ONE_DIGIT = f"{_ENDINGS}|{_WORDS}|\\p{{N}}|{_MARKS}|{_SPACES}"
_TEKKEN = f"{_START}{_LOWER}|{_START}{_UPPER}|\\p{{N}}|{_SLASHED_MARKS}|{_SPACES}"
_GPT_4O = (
    f"{_START}{_LOWER}{_ENDINGS}?|{_START}{_UPPER}{_ENDINGS}?|\\p{{N}}{{1,3}}|"
    f"{_SLASHED_MARKS}|{_SPACES}"
)
_GPT_2 = "GPT-2"
"""Step of ``ByteLevel`` with its own expression."""
_DIGITS = "single digits"
LLAMA_3 = "llama-bpe"
_NAMES: Mapping[tuple[tuple[str, ...], bool], str] = {
    ((_GPT_2,), False): "gpt-2",
    ((_DIGITS, _GPT_2), False): "smollm",
    ((_THREE_DIGITS,), True): LLAMA_3,
    ((_THREE_DIGITS,), False): "dbrx",
    ((_ONE_DIGIT,), False): "qwen2",
    ((_TEKKEN,), True): "tekken",
    ((_TEKKEN,), False): "tekken",
    ((_GPT_4O,), False): "gpt-4o",
}
"""Steps, and whether words that are tokens are not split (`ignore_merges`), to the name."""


def pre_tokenizer_name(tokenizer: Mapping[str, Any], three_digits: str | None) -> str:
    """Return the name of a tokenizer's rule.

    Args:
        tokenizer: tokenizer.json of a byte-level BPE tokenizer.
        three_digits: name of the rule of Llama 3 in the model's architecture; None for the usual.

    Raises:
        RequirementError: the rule has no name.
    """
    steps = tuple(_steps(tokenizer.get("pre_tokenizer") or {}))
    ignores_merges = bool(tokenizer["model"].get("ignore_merges"))
    if three_digits is not None and steps == (_THREE_DIGITS,):
        return three_digits
    if (steps, ignores_merges) not in _NAMES:
        raise RequirementError(
            "tokenizer.json splits text by a rule that has no known name in llama.cpp: "
            + " then ".join(map(repr, steps)),
            remedy="set `pre_tokenizer` to the name that llama.cpp has for this tokenizer",
        )
    return _NAMES[steps, ignores_merges]


def _steps(pre_tokenizer: Mapping[str, Any]) -> Iterator[str]:
    """Yield the steps that split text; ``ByteLevel`` without its expression splits nothing."""
    match pre_tokenizer.get("type"):
        case "Sequence":
            for part in pre_tokenizer["pretokenizers"]:
                yield from _steps(part)
        case "Split":
            yield pre_tokenizer["pattern"].get("Regex") or repr(pre_tokenizer["pattern"])
        case "Digits" if pre_tokenizer.get("individual_digits"):
            yield _DIGITS
        case "ByteLevel":
            if pre_tokenizer.get("use_regex", True):
                yield _GPT_2
        case other:
            yield f"{other}"
