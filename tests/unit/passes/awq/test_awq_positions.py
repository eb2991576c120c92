"""Positions that affect an output, found from gradients."""

import torch
from torch import nn

from compressor.models.checkpoint.loading import load_module
from passes.awq.valid_positions import trace_positions
from tests.support.awq import PHONE, SAMPLES, family_tensors, save_model


def test_traced_positions_are_those_that_are_not_padding(tmp_path):
    module, inputs = load_module(save_model(tmp_path).model), family_tensors(PHONE, padding=3)
    key, adapter = "text_encoder.layers.0.attention.key", "fusion.adapter_in"
    linears = [key, adapter, "fusion.from_speech"]
    masks = trace_positions(module, linears, ("logits",), inputs)
    with torch.inference_mode():
        _, speech_mask = module.speech(inputs["mel"])
    written, spoken = (mask.view(SAMPLES, -1) for mask in masks[key])
    assert torch.equal(written, inputs["tokens"] > 0)
    assert torch.equal(spoken, speech_mask > 0)
    cells, frames = masks[adapter]
    assert bool(cells.all())
    assert torch.equal(frames.view(SAMPLES, -1), speech_mask > 0)
    assert torch.equal(masks["fusion.from_speech"][0], frames)


def test_results_that_are_changed_in_place_are_traced_too():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x, mask):
            inner = self.linear(x)
            inner.relu_()
            return {"logits": (self.head(inner) * mask[..., None]).sum(dim=1)}

    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    inputs = {"x": torch.ones(2, 3, 4), "mask": mask}
    masks = trace_positions(Masked(), ["linear", "head"], ("logits",), inputs)
    assert all(torch.equal(calls[0], mask.flatten() > 0) for calls in masks.values())


def test_parts_that_run_without_gradients_count_everywhere():
    """As the frozen CLIP of CLIPSeg."""

    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x, mask):
            with torch.no_grad():
                inner = self.linear(x)
            return {"logits": (self.head(inner) * mask[..., None]).sum(dim=1)}

    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    inputs = {"x": torch.ones(2, 3, 4), "mask": mask}
    masks = trace_positions(Frozen(), ["linear", "head"], ("logits",), inputs)
    assert masks["linear"][0].all()
    assert torch.equal(masks["head"][0], mask.flatten() > 0)
