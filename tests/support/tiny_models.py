"""Tiny models of our families, their inputs, and configs with every kind of cuttable axes."""

from typing import Any

import torch
from torch import Tensor, nn

from compressor.models.contract import Family
from compressor.models.families.autoglm_phone.family import AutoGLMPhone
from compressor.models.families.image_classifier.family import ImageClassifier
from compressor.models.families.transformers.family import Transformers

PHONE, CLASSIFIER, CHECKPOINT = AutoGLMPhone(), ImageClassifier(), Transformers()
DEEP = PHONE.slim(
    PHONE.presets["tiny"],
    encoder_layers=2,
    decoder_layers=2,
    fusion_layers=2,
    speech_layers=2,
    heads=4,
    key_heads=2,
    speech_width=16,
    ffn=24,
    gate=8,
    vision_blocks=[
        {"kernel": 3, "expanded": 8, "out": 8, "stride": 1, "squeeze": True},
        {"kernel": 3, "expanded": 16, "out": 4, "stride": 1, "squeeze": False},
        {"kernel": 3, "expanded": 16, "out": 4, "stride": 1, "squeeze": True},
        {"kernel": 3, "expanded": 8, "out": 8, "stride": 2, "squeeze": True},
    ],
)
OTHER = PHONE.slim(
    DEEP,
    vision="vit-lite",
    speech="wav2vec-bridge",
    vision_layers=2,
    vision_heads=4,
    vision_ffn=16,
    speech_heads=4,
    vision_head_width=4,
    speech_head_width=4,
    speech_ffn=16,
)
UNEXPANDED = PHONE.slim(
    DEEP,
    vision_stem=8,
    vision_activation="relu6",
    vision_padding="tensorflow",
    vision_blocks=[
        {"kernel": 3, "expanded": 8, "out": 8, "stride": 1, "squeeze": True, "expands": False},
        {"kernel": 3, "expanded": 8, "out": 4, "stride": 2, "squeeze": False, "expands": False},
        {"kernel": 5, "expanded": 16, "out": 4, "stride": 1, "squeeze": False},
    ],
)
MULTI_QUERY = PHONE.slim(DEEP, heads=4, key_heads=1)
CUTTABLE = [
    (PHONE, DEEP),
    (PHONE, OTHER),
    (PHONE, UNEXPANDED),
    (PHONE, MULTI_QUERY),
    (PHONE, PHONE.presets["bed-teacher"]),
    *((CLASSIFIER, config) for config in CLASSIFIER.presets.values()),
    *((CHECKPOINT, config) for config in CHECKPOINT.presets.values()),
]
"""Families and configs that have every kind of cuttable axes."""


def remove_norm_epsilon(model: nn.Module) -> nn.Module:
    """Make the epsilon of every RMS norm negligible, so that scaled inputs give exact outputs."""
    for module in model.modules():
        for name in ("eps", "variance_epsilon"):
            if "RMSNorm" in type(module).__name__ and hasattr(module, name):
                setattr(module, name, 1e-14)
    return model


def build_model(family: Family[Any], config: Any, seed: int = 0) -> nn.Module:
    """Build a model in evaluation mode; its norms get random weights and statistics."""
    torch.manual_seed(seed)
    model = remove_norm_epsilon(family.build(config).eval())
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            is_statistic = name.endswith(("running_mean", "running_var"))
            if is_statistic or ("norm" in name and name.endswith(("weight", "bias"))):
                tensor.copy_(torch.rand_like(tensor) + 0.5)
    return model


def random_inputs(family: Family[Any], config: Any, batch: int) -> dict[str, Tensor]:
    """Return random inputs that depend on ``batch`` alone.

    Of a batch of phone commands, sample 0 has no speech, sample 1 no text, and sample 2 a short
    text.
    """
    generator = torch.Generator().manual_seed(batch)
    lengths = {
        "batch": batch,
        "tokens": getattr(config, "tokens", 0),
        "frames": getattr(config, "frames", 0),
    }
    tensors = {}
    for spec in family.signature(config).inputs:
        shape = [lengths[size] if isinstance(size, str) else size for size in spec.shape]
        if spec.dtype == "float32":
            tensors[spec.name] = torch.randn(shape, generator=generator)
        else:
            high = min(250, spec.below or 250)
            values = torch.randint(1, high, shape, generator=generator)
            tensors[spec.name] = values.to(getattr(torch, spec.dtype))
    if batch > 1 and "mel" in tensors:
        tensors["mel"][0] = 0
        tensors["tokens"][1] = 0
        tensors["tokens"][2, 5:] = 0
    return tensors
