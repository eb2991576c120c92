"""Configuration of the ``export-gguf`` pass; planning imports it, so it imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from compressor.engine.contract import PassConfig

FloatType = Literal["float16", "bfloat16", "float32"]
TableType = Literal["float16", "bfloat16", "float32", "q8_0"]


class ExportGgufConfig(PassConfig):
    """Fields of an ``export-gguf`` step."""

    dtype: FloatType | None = None
    """Type of matrices that are not packed. By default each keeps the type of the checkpoint, so
    that the file holds the same numbers. Norms and biases are always float32, which llama.cpp
    requires."""
    tables: TableType | None = None
    """Type of the embedding and of a language-model head that is not packed. `q8_0` rounds them to
    8 bits in blocks of 32, which halves a float16 table; the report states the error. By default as
    `dtype`."""
    name: Annotated[str, Field(min_length=1)] | None = None
    """Name of the model in the file (`general.name`), which applications display. By default its
    architecture and its number of parameters."""
    pre_tokenizer: Annotated[str, Field(min_length=1)] | None = None
    """Name by which llama.cpp knows how the tokenizer splits text (`tokenizer.ggml.pre`). By
    default it follows from tokenizer.json; set it for a tokenizer whose rule is not recognized."""
