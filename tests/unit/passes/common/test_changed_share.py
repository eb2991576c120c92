"""Share of a model that a pass quantizes: counted, warned about and refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compressor.config.record import with_former_names
from compressor.errors import RequirementError
from passes.awq.config import AwqConfig
from passes.common.changed_share import ChangedShare, count_share
from passes.qat.config import QatConfig


class Recurrent(nn.Module):
    """An embedding of 100 x 8, recurrent weights of 2 x 24 x 8, and a head of 4 x 8."""

    def __init__(self, *, tied: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 8)
        self.recurrent = nn.GRU(8, 8, batch_first=True)
        self.head = nn.Linear(8, 100 if tied else 4)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.recurrent(self.embedding(tokens))[0])


def test_recurrent_weights_are_multiplied_and_embeddings_are_not() -> None:
    share = count_share(
        Recurrent().requires_grad_(False),
        ["head"],
        batch={"tokens": torch.zeros(2, 5, dtype=torch.long)},
    )
    assert (share.changed, share.multiplied, share.total) == (32, 32 + 384, 32 + 384 + 800)
    assert share.macs == pytest.approx(32 / (32 + 384))
    assert share.largest_float[0] == ("embedding.weight", 800)


def test_a_tied_table_is_multiplied_once() -> None:
    share = count_share(Recurrent(tied=True), ["head"])
    assert (share.changed, share.multiplied, share.total) == (800, 1184, 1184)


def test_quantized_tables_count() -> None:
    share = count_share(Recurrent(), ["head"], ["embedding"])
    assert (share.changed, share.multiplied, share.total) == (832, 1216, 1216)


def test_little_is_warned_about_and_next_to_nothing_refused() -> None:
    notes: list[str] = []
    ChangedShare(60, 100, 100).warn(notes.append)
    assert notes == []
    share = count_share(Recurrent(), ["head"])
    share.warn(notes.append)
    assert notes == [
        "only 2.6% of the weights are quantized; the largest that stay in float are "
        "embedding.weight (800), recurrent.weight_ih_l0 (192), recurrent.weight_hh_l0 (192)"
    ]
    with pytest.raises(RequirementError, match=r"only 2\.6% of the weights") as caught:
        share.check(0.1, "do another thing")
    assert "do another thing; or set `min_share: 0`" in str(caught.value)
    share.check(0.0, "")


def test_the_default_of_min_share_is_not_part_of_ids() -> None:
    for config in (QatConfig.model_validate({"calibration": {"data": "x"}}), AwqConfig()):
        assert "min_share" not in with_former_names(config, config.model_dump(mode="json"))
