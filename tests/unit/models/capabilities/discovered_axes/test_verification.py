"""Cut modules against masked ones, where one of the two does not run."""

import torch
from torch import nn

from compressor.models.capabilities.cuttable_axes import Axis
from compressor.models.capabilities.discovered_axes.verification import cut_problem
from compressor.models.capabilities.flop_counting import count_flops
from compressor.models.capabilities.loaded_model import LoadedModel


class Head(nn.Module):
    """Layers that return fewer values than they take."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(4, 2) for _ in range(3))

    def forward(self, x_BI: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the sum of the heads."""
        return {"logits": torch.stack([head(x_BI) for head in self.heads]).sum(dim=0)}


def test_layers_that_cannot_return_their_input_are_no_axis():
    axis = Axis("heads", "layers", 3, (), (), stack="heads")
    model = LoadedModel(Head(), {"x_BI": torch.randn(2, 4)})
    problem = cut_problem([axis], {"heads": torch.tensor([0])}, model, lambda *_: Head())
    assert problem is not None
    assert "the masked module does not run" in problem


class Positions(nn.Module):
    """A parameter is the argument of a submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.table_TI = nn.Parameter(torch.randn(3, 4))
        self.project = nn.Linear(4, 2, bias=False)

    def forward(self) -> torch.Tensor:
        """Return the projected table."""
        result: torch.Tensor = self.project(self.table_TI)
        return result


def test_operations_on_a_parameter_that_is_an_argument_are_counted():
    module = Positions()
    with count_flops(module) as counter:
        module()
    assert counter.get_total_flops() == 2 * 3 * 4 * 2
    assert module.table_TI.requires_grad
