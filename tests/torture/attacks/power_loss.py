"""Cut the power before each file operation of a command, on an ordered file system.

The model is that of ext4 and XFS: operations on names reach the disk in order, contents only when
they are flushed. So every file that was written and not flushed (fsync) is emptied. Not covered:
disks that lose what was flushed, and names that reach the disk out of order.
"""

from __future__ import annotations

from functools import partial

from tests.torture.attacks.kill_points import all_points
from tests.torture.registry import Attack

ATTACK = Attack(
    "power loss",
    "the power fails before a file operation; the store verifies, and the command repeated leaves "
    "the same bytes and nothing else",
    partial(all_points, power=True),
)
