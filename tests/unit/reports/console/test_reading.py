from pathlib import Path

import pytest

from compressor.artifacts.fingerprint import digest_file, observed_reads
from compressor.reports.console import reading


def test_hashing_that_takes_long_states_how_far_it_is_and_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    display, file = reading.ReadingDisplay(), Path("model.safetensors")
    for step in range(1, 61):
        now = 1000.0 + step / 2
        monkeypatch.setattr(reading.time, "monotonic", lambda now=now: now)
        display(file, step * 100_000_000, 6_000_000_000)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "hashing model.safetensors: 1.10 GB of 6.00 GB, about 24.5 s left"
    assert second.startswith("hashing model.safetensors: 4.10 GB of 6.00 GB")


def test_short_hashing_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_bytes(b"content")
    with observed_reads(reading.ReadingDisplay()):
        digest_file(tmp_path / "file")
    assert capsys.readouterr().err == ""


def test_an_observer_learns_of_every_byte_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(5 << 20))
    calls = []
    with observed_reads(lambda *call: calls.append(call)):
        digest_file(tmp_path / "file")
    digest_file(tmp_path / "file")
    assert calls == [(tmp_path / "file", done << 20, 5 << 20) for done in (4, 5)]
