"""Shapes in messages."""

from compressor.models.capabilities.signature import describe_shape


def test_expressions_of_exporters_are_left_out():
    size = "(floor(floor(height/2 - 1/2)/2) + 1)*(floor(floor(width/2 - 1/2)/2) + 1)"
    assert describe_shape(["batch", 22, size]) == "[batch, 22, ?]"
    assert describe_shape(["N", "past_sequence_length", 4]) == "[N, past_sequence_length, 4]"
