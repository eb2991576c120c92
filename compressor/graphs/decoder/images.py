"""Images in a decoder's graph: image embeddings in the sequence, and positions in three axes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compressor.graphs.decoder.architecture import ImageTokens, Rotary
from compressor.graphs.decoder.operators import Operators, RotaryTables


def insert_images(
    add: Operators, x: ir.Value, ids: ir.Value, embeds: ir.Value, hidden: int, token_id: int
) -> ir.Value:
    """Replace the embeddings of image tokens, one after another, by rows of image embeddings.

    Args:
        add: the graph.
        x: embeddings of all tokens, [B, T, hidden].
        ids: `input_ids`, [B, T].
        embeds: image embeddings, [W, hidden]; W may be 0.
        hidden: width of the embeddings.
        token_id: the token that an image embedding replaces.
    """
    token = add.constant("image.token", np.array(token_id, dtype=np.int64))
    zero = add.constant("image.0", np.array(0, dtype=np.int64))
    step = add.constant("image.1", np.array(1, dtype=np.int64))
    is_image = add.op("Equal", [ids, token], "image.is")
    flat = add.op("Reshape", [is_image, add.ints(-1)], "image.is.flat")
    ones = add.op("Cast", [flat], "image.ones", to=ir.DataType.INT64)
    count = add.op("CumSum", [ones, zero], "image.count")
    row = add.op("Sub", [count, step], "image.from_zero")
    row = add.op("Max", [row, zero], "image.number.flat")
    shape = add.op("Shape", [ids], "image.shape")
    row = add.op("Reshape", [row, shape], "image.number")
    # One more row, which is looked up where there are no image embeddings at all.
    spare = add.constant("image.none", np.zeros((1, hidden), dtype=np.float32))
    table = add.op("Concat", [embeds, spare], "image.words", axis=0)
    if add.dtype != ir.DataType.FLOAT:
        table = add.op("Cast", [table], "image.words.half", to=add.dtype)
    rows = add.op("Gather", [table, row], "image.rows", axis=0)
    replaced = add.op("Unsqueeze", [is_image, add.ints(2)], "image.here")
    return add.op("Where", [replaced, rows, x], "embedded.with_images")


def rotary_by_section(
    add: Operators, name: str, rotary: Rotary, positions_3d: ir.Value, images: ImageTokens
) -> RotaryTables:
    """Return tables in which each section of the frequencies follows one of three positions.

    This is M-RoPE (Wang et al. 2024, Qwen2-VL, arXiv:2409.12191).

    Args:
        add: the graph.
        name: part of the names of its nodes.
        rotary: cosines and sines of all frequencies.
        positions_3d: of each token in time, height and width, [3, B, T].
        images: sections of the frequencies.
    """
    starts = np.cumsum([0, *images.sections]).tolist()
    tables = []
    for part, table in (("cos", rotary.cos), ("sin", rotary.sin)):
        sections = []
        for number, (start, size) in enumerate(zip(starts, images.sections, strict=False)):
            section_name = f"{part}.{name}.{number}"
            axis = add.constant(f"axis.{number % 3}", np.array(number % 3))
            places = add.op("Gather", [positions_3d, axis], f"{section_name}.places", axis=0)
            columns = table[:, start : start + size].numpy()
            section = add.floats(f"{section_name}.table", columns)
            sections.append(add.op("Gather", [section, places], section_name))
        tables.append(add.op("Concat", sections, f"{part}.{name}", axis=-1))
    return RotaryTables(tables[0], tables[1], 2 * starts[-1], by_token=True)
