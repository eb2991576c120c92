"""Branches on whether a mask masks anything, and classes that need all tokens beside a cache."""

import pytest
import torch
from torch import nn

from compressor.graphs.decoder.interface import DECODER_TOKENS
from passes.export_onnx.cached.probe import continues_from_cache
from passes.export_onnx.class_tracing import make_traceable
from passes.export_onnx.masks import AdditiveMasks, AnyIsTrue
from tests.support.encoder_classes import CLASSES, TinyClass

FSMT = TinyClass(
    "FSMTForConditionalGeneration",
    "fsmt",
    "seq2seq",
    {
        **CLASSES["bart"].fields,
        "src_vocab_size": 96,
        "tgt_vocab_size": 96,
        "langs": ["en", "de"],
    },
)


class WithoutUselessMask(nn.Module):
    """A mean over the positions that are not padding."""

    def forward(self, values_BT, padding_BT):
        if not padding_BT.any():
            return values_BT.mean(dim=1)
        valid_BT = (~padding_BT).float()
        return (values_BT * valid_BT).sum(dim=1) / valid_BT.sum(dim=1)


def test_a_mask_that_is_left_out_where_nothing_is_padded_stays_in_the_graph():
    values, padding = torch.rand(2, 5), torch.zeros(2, 5, dtype=torch.bool)
    module = WithoutUselessMask()
    with AnyIsTrue():
        program = torch.export.export(module, (values, padding), strict=False).module()
    torch.testing.assert_close(program(values, padding), module(values, padding))
    padding[0, 3:] = True
    torch.testing.assert_close(program(values, padding), module(values, padding))


def test_boolean_masks_of_attention_mean_the_same_in_every_implementation():
    model = CLASSES["bert"].build()
    ids = torch.randint(5, 90, (2, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.eye(6, dtype=torch.bool).expand(2, 1, 6, 6)
    with torch.no_grad():
        expected = model(ids, mask).logits
        make_traceable(model)
        added = model(ids, mask).logits
        with AdditiveMasks():
            actual = model(ids, mask).logits
    torch.testing.assert_close(actual, expected)
    assert (added - expected).abs().max() > 0.01


@pytest.mark.parametrize(("case", "expected"), [(CLASSES["bart"], True), (FSMT, False)])
def test_classes_that_need_all_tokens_beside_their_cache_are_found(case, expected):
    batch = case.batch(1)
    window = {DECODER_TOKENS: batch[DECODER_TOKENS].numpy()}
    encoder_inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    found = continues_from_cache(case.build(), window, tokens=DECODER_TOKENS, **encoder_inputs)
    assert found is expected
