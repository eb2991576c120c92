"""Grammars of answers: JSON schemas, regular expressions, Lark grammars and lists of choices.

They are compiled and followed by llguidance. Shapes: V vocabulary entries.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from compressor.errors import MissingExtraError, UsageError
from compressor.foreign_files.libraries import library_errors

Array = np.ndarray[Any, Any]
_WHITESPACE = r"[ \t\r\n]{1,64}"
"""Whitespace inside of JSON: bounded, since small models may write line breaks without end."""
_LONGEST_REASON = 300


def grammar_from_json_schema(schema: Mapping[str, Any], name: str = "the schema") -> str:
    """Return the grammar of the JSON texts that follow a schema.

    Args:
        schema: the schema.
        name: its name in errors.

    Raises:
        UsageError: the schema is invalid, allows no text, or uses keywords that llguidance does not
            support.
        MissingExtraError: llguidance is not installed.
    """
    if not isinstance(schema, Mapping):
        raise UsageError(f"{name} is {schema!r}; expected an object")
    matcher = _library().LLMatcher
    with library_errors(f"{name} is invalid", UsageError):
        grammar: str = matcher.grammar_from_json_schema(
            json.dumps(schema), defaults={"whitespace_pattern": _WHITESPACE}
        )
    return _checked(grammar, name)


def grammar_from_regex(regex: str) -> str:
    """Return the grammar of a regular expression, which the whole answer matches.

    Raises:
        UsageError: it is invalid.
        MissingExtraError: llguidance is not installed.
    """
    grammar: str = _library().LLMatcher.grammar_from_regex(regex)
    return _checked(grammar, "the regular expression")


def grammar_from_lark(lark: str) -> str:
    """Return a grammar in the syntax of Lark, as llguidance reads it.

    Raises:
        UsageError: it is invalid.
        MissingExtraError: llguidance is not installed.
    """
    grammar: str = _library().LLMatcher.grammar_from_lark(lark)
    return _checked(grammar, "the grammar")


def grammar_from_choices(choices: Sequence[str]) -> str:
    """Return the grammar of a list of texts, one of which is the answer.

    Raises:
        UsageError: the list is empty, or holds an empty text.
        MissingExtraError: llguidance is not installed.
    """
    if not choices or not all(choices):
        raise UsageError(
            f"the choices are {list(choices)!r}; expected one text or more, none empty"
        )
    return grammar_from_lark("start: " + " | ".join(json.dumps(choice) for choice in choices))


def _checked(grammar: str, name: str) -> str:
    """Return a grammar that was checked for errors; special tokens in it are not known here."""
    if reason := _library().LLMatcher.validate_grammar(grammar):
        raise _invalid(name, reason)
    return grammar


def _invalid(name: str, reason: str) -> UsageError:
    line = " ".join(reason.split())
    shortened = line if len(line) <= _LONGEST_REASON else f"{line[:_LONGEST_REASON]} …"
    return UsageError(f"{name} is invalid: {shortened}")


def _library() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise MissingExtraError(
            "llguidance", "an answer that follows a grammar", "serve"
        ) from error
    return llguidance


class GrammarVocabulary:
    """The vocabulary of a model as grammars need it; it is built once for a model."""

    def __init__(self, tokenizer: Any, *, size: int, end_tokens: Sequence[int]) -> None:
        """Read a tokenizer, in about a second.

        Args:
            tokenizer: a tokenizer of transformers.
            size: the number of logits.
            end_tokens: tokens that end an answer; those that the tokenizer lacks have no effect.

        Raises:
            UsageError: the tokenizer is not one of the library tokenizers.
            MissingExtraError: llguidance is not installed.
        """
        _library()
        from llguidance import hf

        known = sorted(token for token in end_tokens if token < len(tokenizer))
        with library_errors("the model's tokenizer cannot follow grammars", UsageError):
            self._tokenizer = hf.from_tokenizer(
                tokenizer, n_vocab=max(size, len(tokenizer)), eos_token=known or None
            )

    def matcher(self, grammar: str) -> GrammarMatcher:
        """Return the state of a grammar at the start of an answer.

        Raises:
            UsageError: the grammar is invalid, or names special tokens that the model lacks.
        """
        return GrammarMatcher(self._tokenizer, grammar)


class GrammarMatcher:
    """The state of a grammar along one answer."""

    def __init__(self, tokenizer: Any, grammar: str) -> None:
        self._matcher = _library().LLMatcher(tokenizer, grammar, log_level=0)
        self._bits = np.empty((tokenizer.vocab_size + 31) // 32, np.int32)
        self._check("the grammar")

    @property
    def is_finished(self) -> bool:
        """True if the grammar is complete, and no token may follow but one that ends the answer."""
        stopped: bool = self._matcher.is_stopped()
        return stopped

    def mask(self, logits_V: Array) -> None:
        """Set the logits of the tokens that may not follow to -inf, in place.

        Raises:
            UsageError: the grammar is too complex.
        """
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._check("the grammar")
        allowed_V = np.unpackbits(
            self._bits.view(np.uint8), count=len(logits_V), bitorder="little"
        ).view(np.bool_)
        np.copyto(logits_V, -np.inf, where=~allowed_V)

    def commit(self, token: int) -> None:
        """Append a token.

        Raises:
            UsageError: it does not follow the grammar.
        """
        self._matcher.consume_token(token)
        self._check(f"the token {token} in the grammar")

    def _check(self, name: str) -> None:
        if self._matcher.is_error():
            raise _invalid(name, self._matcher.get_error())
