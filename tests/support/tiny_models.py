"""Tiny models of our own families, with norms that are not at their initial values."""

from typing import Any

import torch
from torch import nn

from compressor.models.contract import Family
from compressor.models.families.autoglm_phone.family import AutoGLMPhone
from compressor.models.families.image_classifier.family import ImageClassifier
from compressor.models.families.transformers.family import Transformers

PHONE, CLASSIFIER, CHECKPOINT = AutoGLMPhone(), ImageClassifier(), Transformers()


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
