"""Small tokenizers of each kind that published language models have."""

from __future__ import annotations

import json

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

TEXT = [
    "The cat's hat isn't here, is it? I've seen that we're late! They're ready.",
    "Ein Satz mit Umlauten: äöüß, und noch einer; 12345 67 8.",
    "中文句子，在这里。手机打开应用程序。 日本語もある。",
    'do(action="Tap", element=[512, 88]) finish(message="ok") {"a": [1, 2.5, null]}',
    "emoji 👩‍👩‍👧 and 😀😀 flags 🇩🇪",
    "  two  spaces\n\tand a tab\n",
] * 3
SPECIAL = ["<s>", "</s>", "<unk>", "<think>"]
BYTES = [f"<0x{value:02X}>" for value in range(256)]


def byte_level() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE, as GPT-2, Qwen and SmolLM2 have."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return _wrapped(tokenizer)


def byte_fallback() -> PreTrainedTokenizerFast:
    """Return a BPE of characters with byte tokens for all others, as Llama 2 and Mistral have."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=SPECIAL + BYTES, limit_alphabet=60, show_progress=False
    )
    tokenizer.train_from_iterator([text.replace(" ", "▁") for text in TEXT], trainer)
    for name in BYTES:  # trained as special tokens, to get them into the vocabulary
        assert tokenizer.token_to_id(name) is not None
    return _wrapped(_without_added_bytes(tokenizer))


def unigram() -> PreTrainedTokenizerFast:
    """Return a Unigram tokenizer of SentencePiece, as T5 and Gemma's relatives have."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return _wrapped(tokenizer)


def word_piece(*, clean_up: bool) -> PreTrainedTokenizerFast:
    """Return a WordPiece tokenizer as BERT's."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=250, special_tokens=names, show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        sep_token="[SEP]",
        cls_token="[CLS]",
        clean_up_tokenization_spaces=clean_up,
    )


def words() -> PreTrainedTokenizerFast:
    """Return a tokenizer of whole words without a decoder."""
    names = sorted({word for text in TEXT for word in text.split()})
    vocabulary = {name: number for number, name in enumerate([*SPECIAL, *names])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _wrapped(tokenizer)


class OwnDecoding(PreTrainedTokenizerFast):
    """A tokenizer with a ``_decode`` of its own, which changes text as further tokens come."""

    def _decode(self, token_ids, skip_special_tokens=False, **options):
        text = super()._decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text.replace(" .", ".")


KINDS = {
    "byte level": byte_level,
    "byte fallback": byte_fallback,
    "unigram": unigram,
    "word piece": lambda: word_piece(clean_up=False),
    "word piece, cleaned up": lambda: word_piece(clean_up=True),
    "words": words,
    "own decoding": lambda: OwnDecoding(
        tokenizer_object=words().backend_tokenizer, eos_token="</s>"
    ),
}


def _wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def _without_added_bytes(tokenizer: Tokenizer) -> Tokenizer:
    """Make the byte tokens plain entries of the vocabulary."""
    tree = json.loads(tokenizer.to_str())
    tree["added_tokens"] = [t for t in tree["added_tokens"] if t["content"] not in BYTES]
    return Tokenizer.from_str(json.dumps(tree))
