"""Attention in windows with masks equals that of the classes, for texts of any length."""

import pytest
import torch
import transformers

from compressor.models.capabilities.windowed_attention import whole_windows

_TOKENS, _PADDING = 21, 1
_LONGFORMER = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 66,
    "attention_window": 8,
    "pad_token_id": _PADDING,
    "initializer_range": 0.3,
}
_LED = {
    "vocab_size": 96,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "attention_window": 8,
    "max_encoder_position_embeddings": 64,
    "max_decoder_position_embeddings": 64,
    "init_std": 0.3,
}


def _texts():
    """Return two texts, the second of which is padded."""
    ids = torch.randint(4, 96, (2, _TOKENS), generator=torch.Generator().manual_seed(0))
    ids[1, 13:] = _PADDING
    return {"input_ids": ids, "attention_mask": (ids != _PADDING).long()}


def _check(module, batch, valid=...):
    with torch.no_grad():
        expected = module(**batch).logits[valid]
        with whole_windows(module, lambda: module(**batch)):
            actual = module(**batch).logits[valid]
        again = module(**batch).logits[valid]
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(again, expected)


@pytest.mark.parametrize("name", ["LongformerForMaskedLM", "LongformerForSequenceClassification"])
def test_longformer_computes_the_same_with_and_without_global_tokens(name):
    torch.manual_seed(0)
    config = transformers.LongformerConfig(**_LONGFORMER)
    module, batch = getattr(transformers, name)(config).eval(), _texts()
    _check(module, batch, batch["attention_mask"].bool() if "MaskedLM" in name else ...)


@pytest.mark.parametrize("global_tokens", [(), (0, 7)])
def test_led_computes_the_same(global_tokens):
    torch.manual_seed(0)
    module = transformers.LEDForConditionalGeneration(transformers.LEDConfig(**_LED)).eval()
    batch = {**_texts(), "decoder_input_ids": torch.tensor([[4, 5, 6], [7, 8, 9]])}
    if global_tokens:
        mask = torch.zeros(2, _TOKENS, dtype=torch.int64)
        mask[:, list(global_tokens)] = 1
        batch["global_attention_mask"] = mask
    _check(module, batch)


def test_other_modules_are_not_run():
    with whole_windows(torch.nn.Linear(2, 2), pytest.fail):
        pass
