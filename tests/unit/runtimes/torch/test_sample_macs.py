"""MACs of a sample in torch are those of its own size, as in graphs."""

import json

import numpy as np
import pytest

from compressor.runtimes.torch.session import TorchSession
from tests.support.encoder_classes import CLASSES


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    CLASSES["bert"].build().save_pretrained(folder)
    return folder


def _macs(session, tokens):
    ids = np.full((1, tokens), 5)
    return session.sample_macs(
        {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": 0 * ids}
    )


def test_they_grow_with_the_text(bert):
    fields = json.loads((bert / "config.json").read_text())
    hidden, inner, layers = (
        fields[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers")
    )
    with TorchSession(bert, 1, "cpu") as session:
        for tokens in (6, 12):
            linear = 4 * hidden * hidden + 2 * hidden * inner
            attention = 2 * tokens * hidden
            body = layers * tokens * (linear + attention)
            assert body <= _macs(session, tokens) <= body + 2 * hidden * hidden  # pooler and head


def test_a_model_of_one_size_is_counted_by_its_description(tmp_path):
    CLASSES["vit"].build().save_pretrained(tmp_path)
    with TorchSession(tmp_path, 1, "cpu") as session:
        [spec] = session.inputs
        assert session.sample_macs({spec.name: np.zeros((1, 3, 32, 32), np.float32)}) is None
