"""Builders for tests of the ``awq`` pass: tiny parents, calibration samples, and complete runs."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from calibration.sources.arrays import ArrayDataset
from compressor.data.contract import Dataset
from compressor.engine.contract import PassContext, PassOutput
from compressor.models.contract import Family
from compressor.models.families.autoglm_phone.family import AutoGLMPhone
from compressor.models.families.image_classifier.family import ImageClassifier
from compressor.models.families.sentence_encoder.family import SentenceEncoder
from compressor.models.families.transformers.family import Transformers
from passes.awq.config import AwqConfig
from passes.awq.step import Awq
from tests.support.training import Killed

CHECKPOINTS = Transformers()
TOKENS = np.random.default_rng(0).integers(3, 490, (12, 16))
SAMPLES = 12
"""Number of calibration samples."""
AUTOAWQ = {
    "group_size": 32,
    "calibration": {"data": "text", "num_samples": SAMPLES, "batch_size": 4},
}
"""Fields for AutoAWQ's format."""
COMPRESSED_TENSORS = {**AUTOAWQ, "format": "compressed-tensors"}
NEAREST = {"refine": "none", "scaling": False, "error_compensation": 0.0}
"""Fields that leave rounding to nearest alone."""

PHONE, TEXTS, IMAGES = AutoGLMPhone(), SentenceEncoder(), ImageClassifier()
SMALL_PHONE = PHONE.slim(
    PHONE.presets["tiny"],
    hidden=64,
    ffn=96,
    heads=4,
    key_heads=2,
    head_width=16,
    adapter=32,
    gate=32,
    shared=32,
    vision_width=32,
    speech_width=32,
)
TRANSFORMER_PHONE = PHONE.slim(
    SMALL_PHONE,
    vision="vit-lite",
    vision_patch=4,
    vision_layers=2,
    vision_heads=2,
    vision_head_width=16,
    vision_ffn=64,
    speech="wav2vec-bridge",
    speech_heads=2,
    speech_head_width=16,
    speech_ffn=64,
)
VIT = IMAGES.slim(
    IMAGES.presets["small-vit"],
    image_size=16,
    vision_width=32,
    vision_layers=2,
    vision_head_width=8,
    vision_ffn=64,
)
BERT = TEXTS.slim(TEXTS.presets["tiny"], hidden_size=64, intermediate_size=96)
MODELS: dict[str, tuple[Family[Any], Any]] = {
    "phone": (PHONE, SMALL_PHONE),
    "phone of transformers": (PHONE, TRANSFORMER_PHONE),
    "images": (IMAGES, VIT),
    "texts": (TEXTS, BERT),
    "texts with relu": (TEXTS, TEXTS.slim(BERT, hidden_act="relu")),
}
"""Families whose models are quantized as a whole."""


def save_checkpoint(folder: Path, preset: str = "tiny-llama") -> SimpleNamespace:
    """Save a transformers checkpoint with unequal channels, as real models have; its artifact."""
    torch.manual_seed(1)
    config = CHECKPOINTS.presets[preset]
    module = CHECKPOINTS.build(config)
    for weight in module.parameters():
        if weight.ndim == 2:
            weight.data *= 1 + 3 * torch.rand(1, weight.shape[1]) ** 4
    CHECKPOINTS.save(module, config, folder)
    return artifact(folder)


def save_model(
    folder: Path, family: Family[Any] = PHONE, config: Any = SMALL_PHONE
) -> SimpleNamespace:
    """Save a model of another family, with unequal channels and norms; its artifact."""
    torch.manual_seed(1)
    module = family.build(config)
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data *= 1 + 3 * torch.rand(1, layer.in_features) ** 4
        elif isinstance(layer, nn.LayerNorm | nn.RMSNorm):
            layer.weight.data += 0.3 * torch.randn(layer.weight.shape)
            if getattr(layer, "bias", None) is not None:
                layer.bias.data += 0.3 * torch.randn(layer.bias.shape)
    family.save(module, config, folder)
    return artifact(folder)


def artifact(folder: Path) -> SimpleNamespace:
    """Return what a pass reads of the artifact of a model folder."""
    return SimpleNamespace(model=folder, manifest=SimpleNamespace(id="ab12", kind="torch"))


def pass_context(
    folder: Path, killed_after: int | None = None, **data_sets: Dataset
) -> PassContext:
    """Return a context with tokens as data set ``text``.

    Raises ``Killed`` when ``killed_after`` steps of an activity are done.
    """
    data = {"text": ArrayDataset({"input_ids": TOKENS}, ("input_ids",))} | data_sets

    def progress(activity, done, total, figures):
        if done == killed_after:
            raise Killed

    work = folder / "work"
    work.mkdir(parents=True, exist_ok=True)
    return PassContext(
        artifacts={},
        data=data.__getitem__,
        work=work,
        seed=0,
        threads=1,
        device="cpu",
        artifact_id="cd34",
        progress=progress,
        note=lambda line: None,
    )


def run_awq(
    parent: Any, folder: Path, fields: dict[str, Any] = AUTOAWQ, **options: Any
) -> tuple[Path, PassOutput]:
    """Run the pass with all its checks; the folder of the model, and the output.

    ``options`` are those of ``pass_context``.
    """
    config = AwqConfig.model_validate(fields)
    context = pass_context(folder, **options)
    step = Awq()
    step.requires(config, parent, context)
    output = step.run(config, parent, folder / "out", context)
    step.ensures(config, parent, folder / "out", context)
    return folder / "out", output


def run_awq_on_family(
    folder: Path, parent: Any, family: Family[Any] = PHONE, padding: int = 0, **fields: Any
) -> tuple[Path, PassOutput]:
    """Run the pass on a model of a family with samples of that family."""
    data = family_data(family, padding)
    return run_awq(parent, folder, {**COMPRESSED_TENSORS, **fields}, text=data)


def family_samples(family: Family[Any], padding: int = 0) -> dict[str, np.ndarray]:
    """Return inputs of every kind with ``padding`` more positions of padding."""
    random = np.random.default_rng(0)
    if family is IMAGES:
        return {"image": random.integers(0, 256, (SAMPLES, 3, 16, 16), dtype=np.uint8)}
    is_token = np.arange(12 + padding) < random.integers(4, 12, SAMPLES)[:, None]
    tokens = random.integers(1, 250, (SAMPLES, 12 + 40))[:, : 12 + padding]
    tokens = np.where(is_token, tokens, 0)
    if family is TEXTS:
        return {"input_ids": tokens, "attention_mask": is_token.astype(np.int64)}
    is_spoken = np.arange(SAMPLES) % 2 == 1
    is_frame = np.arange(32 + 8 * padding) < random.integers(12, 32, SAMPLES)[:, None]
    mel = random.normal(size=(SAMPLES, 80, 32 + 8 * 40))[:, :, : 32 + 8 * padding]
    mel = mel * is_frame[:, None]
    return {
        "screen": random.integers(0, 256, (SAMPLES, 3, 24, 24), dtype=np.uint8),
        "tokens": np.where(is_spoken[:, None], 0, tokens),
        "mel": (mel * is_spoken[:, None, None]).astype(np.float32),
    }


def family_data(family: Family[Any], padding: int = 0) -> ArrayDataset:
    """Return the samples of a family as a data set."""
    samples = family_samples(family, padding)
    return ArrayDataset(samples, tuple(samples))


def family_tensors(family: Family[Any], padding: int = 0) -> dict[str, torch.Tensor]:
    """Return the samples of a family as one batch."""
    samples = family_samples(family, padding)
    return {name: torch.from_numpy(array) for name, array in samples.items()}
