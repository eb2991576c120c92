"""Pictures that records name."""

from pathlib import Path

import pytest

from calibration.sources.conversations.image_references import image_part
from calibration.sources.records.record import RecordError


def test_a_link_to_itself_is_a_missing_picture(tmp_path: Path) -> None:
    (tmp_path / "p.png").symlink_to("p.png")
    with pytest.raises(RecordError, match="there is no image"):
        image_part("p.png", tmp_path)
