"""Kinds of layers that families state, compared with the modules that they build."""

import pytest
import torch
from torch import nn

from compressor.config.discovery import FAMILIES, load
from compressor.models.capabilities.layer_kinds import LayerKinds
from passes.qat.layer_selection import unshared_embeddings
from tests.support.tiny_models import CHECKPOINT, CLASSIFIER, OTHER, PHONE

SENTENCES = load(FAMILIES, "sentence-encoder")
MODELS = [
    (PHONE, PHONE.presets["tiny"]),
    (PHONE, OTHER),
    (PHONE, PHONE.slim(OTHER, speech="mel-cnn")),
    (CLASSIFIER, CLASSIFIER.presets["tiny"]),
    (CLASSIFIER, CLASSIFIER.presets["small-vit"]),
    (SENTENCES, SENTENCES.presets["tiny"]),
    *((CHECKPOINT, config) for config in CHECKPOINT.presets.values()),
]


@pytest.mark.parametrize(("family", "config"), MODELS)
def test_stated_batch_norms_are_those_of_the_module(family, config):
    with torch.device("meta"):
        layers = list(family.build(config).modules())
    has_batch_norms = any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in layers)
    assert family.require(LayerKinds, config).batch_norms == has_batch_norms


@pytest.mark.parametrize(("family", "config"), MODELS)
def test_stated_embedding_tables_are_those_of_the_module(family, config):
    # The phone's table is unshared, but `forward` also multiplies by its weight.
    tables = () if family is PHONE else unshared_embeddings(family.build(config))
    assert family.require(LayerKinds, config).embedding_tables == bool(tables)
