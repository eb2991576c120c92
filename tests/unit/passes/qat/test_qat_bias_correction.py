"""Correction of biases."""

import numpy as np
import torch

from calibration.capture import forward_hooks, select_valid
from compressor.models.checkpoint.loading import load_module
from compressor.models.quantized.fake_quantization import fold_norms
from compressor.models.quantized.quantization import read_quantization
from passes.qat.bias_correction import correct_biases
from tests.support.qat import run_qat
from tests.support.training import Blobs


def test_corrected_biases_restore_the_mean_output_of_each_layer(parent, tmp_path):
    fields = {"bias_correction": False, "weight_bits": 4, "target": "tensorrt"}
    out, _, _ = run_qat(parent, tmp_path, fields)
    teacher, model = load_module(parent.model), load_module(out)
    layers = read_quantization(out).layers
    fold_norms(teacher, {name: layer.norm for name, layer in layers.items() if layer.norm})
    batch = {"image": torch.from_numpy(Blobs().batch(np.arange(64))["image"])}

    def output_means(module):
        means = {}

        def record(name, inputs, output):
            channels = -1 if output.ndim == 2 else 1
            means[name] = output.movedim(channels, 0).flatten(1).mean(dim=1)

        with forward_hooks(module, layers, after=record), torch.no_grad():
            module(**batch)
        return means

    target, before = output_means(teacher), output_means(model)
    assert correct_biases(model, teacher, batch) == len(layers)
    for name, mean in output_means(model).items():
        torch.testing.assert_close(mean, target[name], atol=1e-4, rtol=1e-3)
        assert (before[name] - target[name]).norm() > 10 * (mean - target[name]).norm(), name


def test_a_mask_of_tokens_does_not_apply_to_vectors_that_are_as_wide_as_texts_are_long():
    vectors, tokens = torch.randn(2, 6), torch.randn(2, 6, 3)
    valid_BT = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    assert select_valid(vectors, valid_BT) is vectors
    assert select_valid(tokens, valid_BT).shape == (10, 3)
