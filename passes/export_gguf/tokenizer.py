"""Vocabulary and special tokens of a checkpoint, as llama.cpp reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
from gguf import GGUFWriter, TokenType

from compressor.errors import ModelError, RequirementError
from compressor.foreign_files.json_files import read_json_object
from passes.export_gguf.pre_tokenizers import pre_tokenizer_name

TOKENIZER = "tokenizer.json"
_BYTE_LENGTH = len("<0x00>")
_ADDED_SCORE, _UNUSED_SCORE = -1000.0, -10000.0
_GLM_ROLES = {
    "eos": "<|endoftext|>",
    "eot": "<|user|>",
    "unk": "<|endoftext|>",
    "bos": "<|endoftext|>",
}
"""Tokens of GLM-4 that its tokenizer does not name."""

_PHI_3_NAMES = ("phi-3", "phi3")
_PHI_3_TOKENS = frozenset({"<s>", "</s>", "<unk>", "<|endoftext|>"})


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens by their ids."""

    tokens: tuple[str, ...]
    types: tuple[TokenType, ...]
    scores: tuple[float, ...] | None
    """Priorities of merges for the SentencePiece kind; None for byte-level BPE."""
    pre_tokenizer: str
    adds_space: bool | None
    """True if a text begins with an added space; None for byte-level BPE."""

    @property
    def has_phi3_tokens(self) -> bool:
        """True if the vocabulary has the tokens that llama.cpp looks up in files named Phi-3."""
        return set(self.tokens) >= _PHI_3_TOKENS

    @property
    def model(self) -> str:
        """Return ``tokenizer.ggml.model``."""
        return "gpt2" if self.scores is None else "llama"


def read_vocabulary(
    folder: Path, size: int, pre_tokenizer: str | None, three_digits: str | None
) -> Vocabulary:
    """Read tokenizer.json.

    Args:
        folder: the checkpoint.
        size: rows of the embedding; ids without a token are marked as unused.
        pre_tokenizer: the name that the config states.
        three_digits: see ``pre_tokenizer_name``.

    Raises:
        RequirementError: there is no tokenizer.json, or llama.cpp has no such tokenizer.
    """
    if not (folder / TOKENIZER).is_file():
        raise RequirementError(
            f"{folder} has no {TOKENIZER}, and a GGUF file holds its model's tokenizer",
            remedy="copy tokenizer.json and tokenizer_config.json from the original checkpoint",
        )
    tree = read_json_object(folder / TOKENIZER, ModelError, remedy="copy it again")
    model = tree.get("model") or {}
    if model.get("type") != "BPE":
        raise RequirementError(
            f"the tokenizer is of type {model.get('type')}; only BPE can be written",
            remedy="use a checkpoint with a BPE tokenizer, as those of the supported models are",
        )
    largest = max([*model["vocab"].values(), *(token["id"] for token in tree["added_tokens"])])
    if largest >= size:
        raise RequirementError(
            f"the tokenizer has a token with id {largest}, and the embedding has {size} rows",
            remedy="take tokenizer and weights from the same checkpoint",
        )
    tokens = _base_tokens(model, size)
    vocabulary = (
        _sentencepiece(tree, tokens)
        if model.get("byte_fallback")
        else Vocabulary(
            tokens,
            tuple(TokenType.NORMAL if token else TokenType.UNUSED for token in tokens),
            None,
            pre_tokenizer or pre_tokenizer_name(tree, three_digits),
            None,
        )
    )
    return _with_added(vocabulary, tree["added_tokens"])


def name_problem(name: str, vocabulary: Vocabulary) -> str | None:
    """Return why llama.cpp could not open a file of this name; None if it can."""
    if vocabulary.has_phi3_tokens or not any(part in name.lower() for part in _PHI_3_NAMES):
        return None
    missing = ", ".join(sorted(_PHI_3_TOKENS - set(vocabulary.tokens)))
    return (
        f"`name: {name}`: llama.cpp looks up tokens of Phi-3 in a file of that name, and the "
        f"vocabulary has no {missing}"
    )


def write_vocabulary(writer: GGUFWriter, vocabulary: Vocabulary, folder: Path) -> None:
    """Write tokens, special tokens and the chat template.

    Args:
        writer: the file.
        vocabulary: its tokens.
        folder: the checkpoint, whose tokenizer files name the special tokens.
    """
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre_tokenizer)
    writer.add_token_list(list(vocabulary.tokens))
    if vocabulary.scores is not None:
        writer.add_token_scores(list(vocabulary.scores))
    writer.add_token_types(list(vocabulary.types))
    if vocabulary.adds_space is not None:
        writer.add_add_space_prefix(vocabulary.adds_space)
    is_bpe = vocabulary.scores is None
    special = gguf.SpecialVocab(folder, load_merges=is_bpe, n_vocab=len(vocabulary.tokens))
    if vocabulary.pre_tokenizer == "glm4":
        for role, token in _GLM_ROLES.items():
            if token in vocabulary.tokens:
                special.special_token_ids[role] = vocabulary.tokens.index(token)
    first, last = _added_ends(folder)
    ids = special.special_token_ids
    # Stated in every file: where it is absent, llama.cpp decides by the name of the pre-tokenizer.
    special.add_special_token = {
        **special.add_special_token,
        "bos": first is not None and first == ids.get("bos"),
        "eos": last is not None and last == ids.get("eos"),
    }
    special.add_to_gguf(writer, quiet=True)


def _base_tokens(model: Mapping[str, Any], size: int) -> tuple[str, ...]:
    tokens = [""] * size
    for token, number in model["vocab"].items():
        tokens[number] = token
    return tuple(tokens)


def _sentencepiece(tree: Mapping[str, Any], tokens: Sequence[str]) -> Vocabulary:
    """Return the vocabulary of a tokenizer that was converted from SentencePiece.

    Its merges are in the order of the pieces' scores, and llama.cpp merges by score.
    """
    scores: dict[str, float] = {}
    for rank, merge in enumerate(tree["model"]["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        scores.setdefault(left + right, -float(rank))
    unknown = tree["model"].get("unk_token")

    def type_of(token: str) -> TokenType:
        if not token:
            return TokenType.UNUSED
        if token == unknown:
            return TokenType.UNKNOWN
        is_byte = len(token) == _BYTE_LENGTH and token.startswith("<0x") and token.endswith(">")
        return TokenType.BYTE if is_byte else TokenType.NORMAL

    steps = [tree.get("normalizer") or {}, tree.get("pre_tokenizer") or {}]
    flat = [part for step in steps for part in step.get("normalizers", [step])]
    adds_space = any(
        step.get("type") == "Prepend"
        or (step.get("type") == "Metaspace" and step.get("prepend_scheme") != "never")
        for step in flat
    )
    return Vocabulary(
        tuple(tokens),
        tuple(type_of(token) for token in tokens),
        tuple(scores.get(token, 0.0) if token else _UNUSED_SCORE for token in tokens),
        "default",
        adds_space,
    )


def _with_added(vocabulary: Vocabulary, added: Sequence[Mapping[str, Any]]) -> Vocabulary:
    """Return the vocabulary with its added tokens, and names for ids without a token."""
    tokens, types = [*vocabulary.tokens], [*vocabulary.types]
    scores = None if vocabulary.scores is None else [*vocabulary.scores]
    for entry in added:
        number, content = entry["id"], entry["content"]
        is_control = entry.get("special") or _looks_special(content)
        if types[number] != TokenType.UNKNOWN:
            types[number] = TokenType.CONTROL if is_control else TokenType.USER_DEFINED
        # A token that users write is compared with text before spaces are replaced.
        tokens[number] = content if is_control else content.replace("▁", " ")
        if scores is not None:
            scores[number] = _ADDED_SCORE
    named = tuple(token or f"[PAD{number}]" for number, token in enumerate(tokens))
    return replace(
        vocabulary,
        tokens=named,
        types=tuple(types),
        scores=None if scores is None else tuple(scores),
    )


def _looks_special(token: str) -> bool:
    """Return True for tokens that some tokenizers do not mark as special."""
    return (
        token in {"<pad>", "<mask>", "<2mass>", "[@BOS@]"}
        or (token.startswith("<|") and token.endswith("|>"))
        or (token.startswith("<｜") and token.endswith("｜>"))
        or (token.startswith("<unused") and token.endswith(">"))
    )


def _added_ends(folder: Path) -> tuple[int | None, int | None]:
    """Return the ids that the tokenizer adds before and after a text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    ids = tokenizer.encode("a", add_special_tokens=True).ids
    start = next((n for n in range(len(ids)) if ids[n : n + len(bare)] == bare), 0)
    end = start + len(bare)
    return (ids[0] if start else None, ids[-1] if end < len(ids) else None)
