"""How commands and cells meet in one space: late interaction.

A command is asked for by a few of its positions ("open", "the", *camera*), and nobody says which. So a thing's score is the
log-sum-exp of its cosines with all positions: a soft maximum, as MaxSim in late interaction (Khattab & Zaharia 2020) and as
the pooling of instances in multiple-instance learning. It needs no position to carry the whole command.

Shapes: B commands, L positions, N things, E shared width. All vectors have length 1, or 0 where a command has no position.
"""

from __future__ import annotations

from torch import Tensor

from compressor.models.families.autoglm_phone.blocks import HIDDEN_SCORE


def late_interaction(
    command_BLE: Tensor, things: Tensor, present_BL: Tensor, temperature: float
) -> Tensor:
    """The score of each thing for each command: [B, N].

    Args:
        command_BLE: the command, position by position.
        things: [N, E], the same for every command; or [B, N, E].
        present_BL: 1 where the command has a position.
        temperature: divides the cosines.
    """
    scores_BLN = (command_BLE / temperature) @ things.transpose(-1, -2)
    return (scores_BLN + ((1.0 - present_BL) * HIDDEN_SCORE)[:, :, None]).logsumexp(dim=1)
