"""InfoNCE terms that bring commands and cells of one concept together (van den Oord et al. 2018).

Shapes: B batch, C cells, E shared width, P concepts. All vectors have length 1.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def contrast(
    command_BE: Tensor, cells_BCE: Tensor, concept_B: Tensor, concepts_BC: Tensor, temperature: float
) -> Tensor:
    """Each command against all cells of the batch; every cell that shows its concept is a positive.

    The mean of log p over the positives, as in supervised contrastive learning (Khosla et al. 2020); commands whose
    concept no cell shows count nothing.
    """
    scores = command_BE @ cells_BCE.flatten(0, 1).T / temperature
    positive = (concept_B[:, None] == concepts_BC.flatten()[None, :]).to(scores.dtype)
    each = -(scores.log_softmax(dim=1) * positive).sum(dim=1) / positive.sum(dim=1).clamp(min=1.0)
    shown = (positive.sum(dim=1) > 0).to(scores.dtype)
    return (each * shown).sum() / shown.sum().clamp(min=1.0)


def to_prototypes(vectors_NE: Tensor, concept_N: Tensor, prototypes_PE: Tensor, temperature: float) -> Tensor:
    """InfoNCE against one learnt prototype per concept: commands and cells meet at the same points."""
    prototypes_PE = functional.normalize(prototypes_PE, dim=-1)
    return functional.cross_entropy(vectors_NE @ prototypes_PE.T / temperature, concept_N)
