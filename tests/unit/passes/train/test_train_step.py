"""The ``train`` pass: a model that learns, and models without heads to train."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from compressor.engine.contract import PassContext
from compressor.models.capabilities.cuttable_axes import replace_fields
from compressor.models.capabilities.training_heads import TrainingHeads
from compressor.models.checkpoint.loading import load_module
from compressor.models.families.sentence_encoder.family import SentenceEncoder
from passes.common.accuracy import evaluate_accuracy
from passes.train.config import TrainConfig
from passes.train.step import Train
from tests.support.tiny_models import CLASSIFIER
from tests.support.training import Blobs


class WithoutLabels(Blobs):
    def batch(self, indices, epoch=0):
        return {"image": np.zeros((len(indices), 3, 16, 16), np.uint8)}


DATA_SETS = {"train": Blobs(), "unlabelled": WithoutLabels()}


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    torch.manual_seed(0)
    config = replace_fields(CLASSIFIER.presets["small"], {("num_classes",): 2, ("image_size",): 16})
    folder = tmp_path_factory.mktemp("parent")
    CLASSIFIER.save(CLASSIFIER.build(config), config, folder)
    return SimpleNamespace(model=folder)


def create_context(folder):
    return PassContext(
        artifacts={},
        data=DATA_SETS.__getitem__,
        work=folder,
        seed=0,
        threads=1,
        device="cpu",
        artifact_id="ab" * 32,
        progress=lambda *_: None,
        note=lambda _: None,
    )


def test_a_model_learns_and_loads_again(parent, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    config = TrainConfig.model_validate_json(
        '{"validation": "train", "training": {"steps": 60, "batch_size": 16}}'
    )
    context = create_context(tmp_path)
    Train().requires(config, parent, context)
    summary = Train().run(config, parent, out, context).summary
    Train().ensures(config, parent, out, context)
    accuracy = evaluate_accuracy(load_module(out), Blobs(), 32).accuracy
    assert accuracy == summary["history"][-1]["accuracy"] > 0.9
    assert (summary["steps"], summary["kept_step"], summary["stopped_early"]) == (60, 60, False)


def test_the_pass_needs_heads_which_encoders_lack():
    family = SentenceEncoder()
    assert Train().needs(TrainConfig()) == (TrainingHeads,)
    assert family.capability(TrainingHeads, family.presets["tiny"]) is None


def test_tokenizer_and_licence_travel_with_the_weights(parent, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(parent.model, source)
    for name in ("tokenizer.json", "LICENSE"):
        (source / name).write_text("{}")
    out = tmp_path / "out"
    out.mkdir()
    config = TrainConfig.model_validate({"validation": None, "training": {"steps": 1}})
    Train().run(config, SimpleNamespace(model=source), out, create_context(tmp_path))
    assert (out / "tokenizer.json").is_file() and (out / "LICENSE").is_file()
