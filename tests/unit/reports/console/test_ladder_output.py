import re
from pathlib import Path
from xml.etree import ElementTree as ET

from rich.console import Console

from compressor.reports.console.ladder import ladder_table, write_picture
from compressor.reports.rows.ladder import build_ladder
from tests.support.reports import gate_result, phone_run, run_report


def printed(tmp_path: Path, width: int) -> str:
    console = Console(width=width, record=True)
    console.print(ladder_table(build_ladder(phone_run(tmp_path)), width))
    return console.export_text()


def test_a_narrow_terminal_leaves_out_columns_in_place_of_wrapping_them(tmp_path: Path) -> None:
    wide, narrow = printed(tmp_path, 200), printed(tmp_path, 100)
    assert "throughput" in wide
    assert "throughput" not in narrow
    for column in ("top-1", "latency p50", "size", "built in"):
        assert column in wide
        assert column in narrow
    assert len(narrow.splitlines()) == len(wide.splitlines()) == 6


def test_the_ladder_names_the_runtime_of_each_latency(tmp_path: Path) -> None:
    lines = printed(tmp_path, 200).splitlines()
    assert "4.10 ms torch" in next(line for line in lines if "student" in line)
    assert "1.15 ms ONNX Runtime" in next(line for line in lines if "onnx" in line)


def test_the_picture_shows_the_ladder_and_the_gates_without_the_network(tmp_path: Path) -> None:
    file = tmp_path / "ladder.svg"
    write_picture(run_report(tmp_path, gates=[gate_result()]), file)
    root = ET.fromstring(file.read_text())
    text = " ".join("".join(root.itertext()).replace("\xa0", " ").split())
    assert "student" in text
    assert "must be at least 90.0 %" in text
    assert not re.search(r"https?://(?!www\.w3\.org)", file.read_text())
