"""Correction of biases."""

import numpy as np
import torch

from calibration.capture import forward_hooks, select_valid
from compressor.models.capabilities.valid_positions import PositionMask
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
    mask = PositionMask(valid_BT)
    assert select_valid(vectors, mask) is vectors
    assert select_valid(tokens, mask).shape == (10, 3)


def test_a_mask_of_recordings_applies_to_their_frames_and_not_to_the_text_of_a_decoder():
    valid_BT = torch.tensor([[True] * 60, [True] * 30 + [False] * 30])
    mask = PositionMask(valid_BT, is_recording=True, decoder_tokens=4)
    frames = torch.arange(6).repeat(2, 1)[..., None]
    assert mask.select(frames).flatten().tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2]
    channels = torch.arange(6).repeat(2, 3, 1)
    assert mask.select(channels, channels_first=True).tolist()[6:] == [[0] * 3, [1] * 3, [2] * 3]
    text, heads = torch.zeros(2, 4, 8), torch.zeros(2, 3, 6, 8)
    assert mask.select(text) is text
    assert mask.select(heads) is heads
