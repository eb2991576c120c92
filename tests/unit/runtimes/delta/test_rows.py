"""Rows rounded to 8 bits: the error of a value is at most half a step."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from compressor.runtimes.delta.manifest import TensorRecord
from compressor.runtimes.delta.rows import dequantize_rows, quantize_rows
from compressor.runtimes.delta.tensors import decode_tensor, encode_tensor

MATRICES = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=2, max_dims=2, max_side=12),
    elements=st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False),
)


def _is_normal(scales):
    return (scales == 0) | (scales > 1e-36)


@settings(max_examples=150, deadline=None)
@given(MATRICES)
def test_a_value_is_off_by_half_a_step_at_most(values):
    scales, integers = quantize_rows(values)
    error = np.abs(dequantize_rows(scales, integers).astype(np.float64) - values)
    # Float32 holds a scale to 24 bits, and it is multiplied by up to 127.
    allowed = scales.astype(np.float64) * (0.5 + 127 * 2.0**-23)
    assert (error <= allowed[:, None])[_is_normal(scales)].all()
    assert np.abs(integers.astype(int)).max(initial=0) <= 127


@settings(max_examples=50, deadline=None)
@given(MATRICES, st.sampled_from([0, 1]))
def test_decoding_reads_exactly_what_encoding_wrote(values, axis):
    record = TensorRecord(name="w", shape=values.shape, encoding="int8", axis=axis)
    content = encode_tensor(record, values)
    assert len(content) == record.payload_bytes
    position = 0

    def read(size):
        nonlocal position
        position += size
        return content[position - size : position]

    decoded = np.concatenate(list(decode_tensor(record, read)))
    assert position == len(content)
    rows = values.T if axis else values
    expected = dequantize_rows(*quantize_rows(np.ascontiguousarray(rows)))
    assert np.array_equal(decoded, expected.T if axis else expected)


def test_rows_of_zeros_and_the_extremes_of_a_row_are_exact():
    values = np.array([[0, 0, 0], [-127, 3, 127], [254, 2, -4]], np.float32)
    assert np.array_equal(dequantize_rows(*quantize_rows(values)), values)
