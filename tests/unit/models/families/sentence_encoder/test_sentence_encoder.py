"""The family ``sentence-encoder``: padding, pooling, folders and limits."""

import pytest
import torch

from compressor.errors import DataError
from compressor.models.checkpoint.loading import load_module
from compressor.models.families.sentence_encoder.family import SentenceEncoder
from compressor.runtimes.session import match_inputs

FAMILY = SentenceEncoder()
TINY = FAMILY.presets["tiny"]


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    return FAMILY.build(TINY).eval().requires_grad_(False)


def texts(*lengths, padded_to):
    ids = torch.randint(
        1, TINY.vocab_size, (len(lengths), padded_to), generator=torch.Generator().manual_seed(1)
    )
    mask = (torch.arange(padded_to) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask}


def test_embeddings_have_length_one_and_differ(module):
    embeddings = module(**texts(9, 4, padded_to=9))["embedding"]
    assert embeddings.shape == (2, TINY.hidden_size)
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(2))
    assert float(embeddings[0] @ embeddings[1]) < 0.99


def test_padding_does_not_change_embeddings(module):
    feed = texts(5, 7, padded_to=12)
    unpadded = {name: array[:1, :5] for name, array in feed.items()}
    other_padding = feed | {
        "input_ids": torch.where(feed["attention_mask"] == 1, feed["input_ids"], 3)
    }
    embeddings = module(**feed)["embedding"]
    assert torch.allclose(module(**other_padding)["embedding"], embeddings, atol=1e-6)
    assert torch.allclose(module(**unpadded)["embedding"], embeddings[:1], atol=1e-6)


def test_the_embedding_is_the_normalized_mean_of_the_tokens(module):
    feed = texts(5, padded_to=8)
    tokens = module.bert(**feed).last_hidden_state[0, :5].mean(dim=0)
    assert torch.allclose(module(**feed)["embedding"][0], tokens / tokens.norm(), atol=1e-6)


def test_a_model_folder_restores_the_embeddings(module, tmp_path):
    FAMILY.save(module, TINY, tmp_path)
    feed = texts(5, 7, padded_to=12)
    assert torch.equal(load_module(tmp_path)(**feed)["embedding"], module(**feed)["embedding"])


def test_a_text_that_is_too_long_is_refused():
    feed = {name: tensor.numpy() for name, tensor in texts(33, padded_to=33).items()}
    with pytest.raises(DataError, match="input_ids: tokens is 33; the model takes at most 32"):
        match_inputs(feed, FAMILY.signature(TINY).inputs)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_attention_heads": 5}, "no multiple of 5 heads"),
        ({"tokens": 64}, "exceeds max_position_embeddings 32"),
    ],
)
def test_dimensions_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        FAMILY.slim(TINY, **fields)
