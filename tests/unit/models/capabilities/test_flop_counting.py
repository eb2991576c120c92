"""Operations of modules that torch's counter does not know are counted."""

import pytest
import torch
from torch import nn

from compressor.models.capabilities.flop_counting import count_flops


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_recurrent_layers_count_their_weights_for_every_token(kind, device):
    layer = kind(8, 6, num_layers=2, bidirectional=True, batch_first=True, device=device).eval()
    samples, tokens = 2, 5
    with count_flops(layer) as counter:
        layer(torch.zeros(samples, tokens, 8, device=device))
    weights = sum(weight.numel() for weight in layer.parameters() if weight.ndim > 1)
    assert counter.get_total_flops() == 2 * samples * tokens * weights
