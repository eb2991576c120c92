"""A tiny classifier for the ``qat`` pass, its data sets, and a runner of the pass."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import torch

from compressor.engine.contract import PassContext
from compressor.models.capabilities.cuttable_axes import replace_fields
from compressor.models.capabilities.training_heads import TrainingHeads
from compressor.models.checkpoint.description import read_description
from compressor.models.checkpoint.loading import load_module
from passes.common.accuracy import evaluate_accuracy
from passes.common.config import TrainingConfig
from passes.common.losses import hard_cross_entropy
from passes.common.task import RunSettings, Task
from passes.common.training import fit
from passes.qat.config import QatConfig
from passes.qat.step import Qat
from tests.support.tiny_models import CLASSIFIER
from tests.support.training import Blobs, Killed


class BlankImages(Blobs):
    """Black images."""

    def batch(self, indices, epoch=0):
        return {"image": np.zeros((len(indices), 3, 16, 16), np.uint8), "label": indices % 2}


class WithoutLabels(Blobs):
    """Images without labels."""

    def batch(self, indices, epoch=0):
        return {"image": super().batch(indices, epoch)["image"]}


class ThreeClasses(Blobs):
    """Images with labels 0 to 2, of which the classifier has no class 2."""

    def batch(self, indices, epoch=0):
        return super().batch(indices, epoch) | {"label": indices % 3}


class Empty(Blobs):
    """No images."""

    def __len__(self):
        return 0


DATA_SETS = {
    "train": Blobs(),
    "blank": BlankImages(),
    "empty": Empty(),
    "unlabelled": WithoutLabels(),
    "three-classes": ThreeClasses(),
}
CALIBRATION = {"data": "train", "num_samples": 32, "batch_size": 16}


def artifact(folder, id_="ab12"):
    """Return a stand-in for the artifact of a float model."""
    return SimpleNamespace(model=folder, manifest=SimpleNamespace(id=id_))


def train_classifier(folder):
    """Train a classifier of the two classes of ``Blobs``, and return its artifact."""
    torch.manual_seed(0)
    config = replace_fields(
        CLASSIFIER.presets["small"],
        {("num_classes",): 2, ("image_size",): 16, ("vision_activation",): "relu6"},
    )
    module = CLASSIFIER.build(config)
    heads = CLASSIFIER.require(TrainingHeads, config)
    task = Task(
        Blobs(), lambda outputs, batch, _: hard_cross_entropy(heads.logits(module, outputs), batch)
    )
    training = TrainingConfig(steps=60, batch_size=16, learning_rate=3e-3)
    fit(module, task, training, RunSettings(seed=0, checkpoint_dir=folder))
    CLASSIFIER.save(module, config, folder / "model")
    return artifact(folder / "model")


def qat_config(**fields):
    """Return a config that calibrates on 32 samples."""
    return QatConfig.model_validate_json(json.dumps({"calibration": CALIBRATION} | fields))


def run_qat(parent, folder, fields=None, kill=None, artifacts=None):
    """Run the pass in a folder.

    Args:
        parent: artifact of the float model.
        folder: holds ``work``, which is kept, and ``out``, which is emptied first.
        fields: fields of the config.
        kill: (activity, steps done) of the progress call that raises ``Killed``.
        artifacts: other artifacts by role.

    Returns:
        The folder of the quantized model, the summary and the notes.
    """
    work, out, notes = folder / "work", folder / "out", []
    shutil.rmtree(out, ignore_errors=True)
    for path in (work, out):
        path.mkdir(parents=True, exist_ok=True)

    def progress(activity, done, total, metrics):
        if kill is not None and (activity, done) == kill:
            raise Killed

    context = PassContext(
        artifacts=artifacts or {},
        data=DATA_SETS.__getitem__,
        work=work,
        seed=0,
        threads=1,
        device="cpu",
        artifact_id="ab" * 32,
        progress=progress,
        note=notes.append,
        cache=folder / "cache",
    )
    config = qat_config(**(fields or {}))
    qat = Qat()
    qat.requires(config, parent, context)
    output = qat.run(config, parent, out, context)
    qat.ensures(config, parent, out, context)
    return out, output.summary, notes


def accuracy(folder):
    """Return the accuracy of a saved model on ``Blobs``."""
    return evaluate_accuracy(load_module(folder), Blobs(), 32).accuracy


def save_variant(module, parent, folder):
    """Save a changed module of the parent, with another activation, as an artifact."""
    config = read_description(parent.model).config
    config = replace_fields(config, {("vision_activation",): "hardswish"})
    CLASSIFIER.save(module, config, folder)
    return artifact(folder, "cd34")


def add_outlier_channels(parent, folder, *names):
    """Save a variant of the parent that is hard to quantize.

    One input channel of each named layer becomes 3000 times as large, and its weights as much
    smaller: the function stays nearly the same, but a grid for all channels rounds the others to 0.
    """
    module = load_module(parent.model)
    for name in names:
        norm = module.get_submodule(name.replace("project", "filter") + "_norm")
        with torch.no_grad():
            norm.weight[0] *= 3000
            norm.bias[0] *= 3000
            module.get_submodule(name).weight[:, 0] /= 3000
    return save_variant(module, parent, folder)
