"""GGUF files whose headers lie about their data are refused, and the sizes are those of ggml."""

import struct

import pytest

from compressor.errors import ModelError
from compressor.runtimes.foreign.gguf import GgufFile
from compressor.runtimes.foreign.gguf_layout import _BLOCKS, TensorPlace, check_places
from tests.support.model_files import gguf_header

NAME = b"output_norm.weight"
SHAPE = gguf_header().index(NAME) + len(NAME) + 4
OFFSET = SHAPE + 12


def test_block_sizes_are_those_of_ggml():
    gguf = pytest.importorskip("gguf")
    sizes = {kind.name: size for kind, size in gguf.GGML_QUANT_SIZES.items()}
    assert {name: sizes[name] for name in _BLOCKS if name in sizes} == {
        name: size for name, size in _BLOCKS.items() if name in sizes
    }
    assert len(_BLOCKS.keys() & sizes) >= 25


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (OFFSET, 0, "overlap"),
        (OFFSET, 1, "not aligned"),
        (OFFSET, 2**62, "end at byte"),
        (SHAPE, 2**63, "end at byte"),
        (SHAPE, 257, "end at byte"),
    ],
)
def test_a_header_that_lies_about_the_data_is_refused(tmp_path, position, value, message):
    content = bytearray(gguf_header())
    content[position : position + 8] = struct.pack("<Q", value)
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        GgufFile().describe(tmp_path / "model.gguf")
    assert caught.value.remedy == "copy or download it again"


@pytest.mark.parametrize("alignment", [0, -32, 48, "32"])
def test_an_alignment_that_is_no_power_of_two_is_refused(alignment):
    with pytest.raises(ValueError, match="an alignment of"):
        check_places([], 100, alignment, 1000)


def test_rows_are_divided_into_whole_blocks():
    check_places([TensorPlace("a", "Q4_0", 64, 32, 0)], 32, None, 32 + 36)
    with pytest.raises(ValueError, match="rows of 16 in blocks of 32 values"):
        check_places([TensorPlace("a", "Q4_0", 64, 16, 0)], 32, None, 1000)
