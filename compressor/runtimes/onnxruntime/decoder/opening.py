"""Opening of a decoder's graphs: for tokens one by one, and for prompts."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import onnxruntime

from compressor.errors import UsageError
from compressor.graphs.decoder.cache_layout import KvCacheLayout
from compressor.graphs.decoder.interface import INPUT_IDS
from compressor.graphs.files import MODEL
from compressor.runtimes import memory
from compressor.runtimes.onnxruntime.inference import open_inference_session

SLEEP_BETWEEN_RUNS = {"session.force_spinning_stop": "1"}
"""Session config entry: threads of an idle session do not spin, while another session or a server's
event loop needs the cores."""
_OPENING_COPIES = 4
"""Copies of a file in memory while it is opened: its bytes, its tensors, the kernels' packed
weights, and fragmentation."""


def cache_layout(folder: Path, session: onnxruntime.InferenceSession) -> KvCacheLayout:
    """Return the layout of a decoder's cache, with its bounds.

    Raises:
        ModelError: the graph has a cache of a kind that is not known.
        UsageError: the graph is no decoder.
    """
    metadata = session.get_modelmeta().custom_metadata_map
    layout = KvCacheLayout.from_inputs(session.get_inputs(), metadata)
    if layout is None:
        raise UsageError(
            f"{folder} holds no decoder: its graph has no key-value cache",
            remedy="name an artifact that export-onnx made from a language model",
        )
    return layout


def takes_one_token(session: onnxruntime.InferenceSession) -> bool:
    """Return True for a graph whose calls append one token each."""
    [shape] = [value.shape for value in session.get_inputs() if value.name == INPUT_IDS]
    return bool(shape[1] == 1)


def open_decoder_graph(
    folder: Path, threads: int, *, huge_pages: bool, settings: Mapping[str, str]
) -> onnxruntime.InferenceSession:
    """Open ``model.onnx``, with its weights in huge pages if asked for and possible.

    Raises:
        ModelError: the graph cannot be opened.
    """
    size_bytes = sum(file.stat().st_size for file in folder.glob(f"{MODEL}*"))
    with memory.huge_pages(_OPENING_COPIES * size_bytes) if huge_pages else nullcontext():
        return open_inference_session(folder, threads, settings=settings)


def open_prompt_graph(
    folder: Path, threads: int, *, huge_pages: bool
) -> onnxruntime.InferenceSession:
    """Write and open the graph for prompts; its files are deleted again.

    Raises:
        UsageError: the decoder has no packed weights, or the copies do not fit into memory.
        StorageError: the graph cannot be written to the temporary directory.
    """
    from compressor.runtimes.onnxruntime.decoder.fast_prompts import temporary_prompt_graph
    from compressor.runtimes.onnxruntime.integer_kernels import (
        EXACT_PRODUCTS,
        integer_products_saturate,
    )

    with temporary_prompt_graph(folder, threads) as prompt_folder:
        settings = SLEEP_BETWEEN_RUNS | (EXACT_PRODUCTS if integer_products_saturate() else {})
        return open_decoder_graph(prompt_folder, threads, huge_pages=huge_pages, settings=settings)
