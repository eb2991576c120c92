"""Whatever lies in a checkpoint's folder, it is read as transformers reads it, or refused."""

from __future__ import annotations

import pickle
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compressor.errors import ModelError
from compressor.models.checkpoint.description import read_description
from compressor.models.checkpoint.loading import load_module
from compressor.models.families.transformers.streaming import StreamedCheckpoint
from tests.support.checkpoints import (
    HEAD,
    PRESETS,
    StoredCheckpoint,
    read_by_transformers,
    stored_checkpoint,
)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@st.composite
def checkpoints(draw: Any, preset: str) -> StoredCheckpoint:
    """Draw a checkpoint with some of the irregularities of real ones."""
    flag = draw(
        st.sampled_from([{}, {"tie_word_embeddings": True}, {"tie_word_embeddings": False}])
    )
    stored = stored_checkpoint(preset, draw(st.integers(0, 9)))
    stored.tree.pop("tie_word_embeddings", None)
    stored.tree |= flag
    draw_tie(draw, stored)
    draw_names(draw, stored)
    draw_dtypes(draw, stored)
    draw_tree(draw, stored)
    draw_files(draw, stored)
    return stored


def draw_tie(draw: Any, stored: StoredCheckpoint) -> None:
    embedding = stored.tensors[stored.embedding]
    kind = draw(st.sampled_from(["as it is", "no head", "equal", "different", "head alone"]))
    if kind == "no head":
        stored.tensors.pop(HEAD, None)
    elif kind == "equal":
        stored.tensors[HEAD] = embedding.clone()
    elif kind == "different":
        stored.tensors[HEAD] = embedding + torch.linspace(0, 1, embedding.shape[1])
    elif kind == "head alone":
        stored.tensors[HEAD] = stored.tensors.pop(stored.embedding)


def draw_names(draw: Any, stored: StoredCheckpoint) -> None:
    if draw(st.integers(0, 3)) == 0:  # a checkpoint of the base model
        stored.tensors = {k.removeprefix("model."): v for k, v in stored.tensors.items()}
    if draw(st.integers(0, 3)) == 0:
        name = next(name for name in stored.tensors if "layers.0.self_attn" in name)
        name = name.partition("self_attn")[0] + "self_attn.rotary_emb.inv_freq"
        if "gemma" not in stored.tree["model_type"]:  # its class reports the buffer
            stored.tensors[name] = torch.ones(4)
    kind = draw(st.integers(0, 9))
    names = sorted(stored.tensors)
    if kind == 0:
        del stored.tensors[draw(st.sampled_from(names))]
    elif kind == 1:
        stored.tensors[f"{names[0].rpartition('.')[0]}.extra"] = torch.ones(2)
    elif kind == 2:
        stored.tensors[draw(st.sampled_from(names))] = torch.ones(3, 5)


def draw_dtypes(draw: Any, stored: StoredCheckpoint) -> None:
    dtype = DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
    stored.tensors = {name: value.to(dtype) for name, value in stored.tensors.items()}
    key = draw(st.sampled_from(["dtype", "torch_dtype"]))
    named = draw(st.sampled_from([None, "absent", *DTYPES]))
    if named != "absent":
        stored.tree[key] = named


def draw_tree(draw: Any, stored: StoredCheckpoint) -> None:
    for name in ("architectures", "quantization_config"):
        kind = draw(st.sampled_from(["as it is", "absent", "null"]))
        if kind == "absent":
            stored.tree.pop(name, None)
        elif kind == "null":
            stored.tree[name] = None
    text = stored.tree.get("text_config") or stored.tree
    text["pad_token_id"] = draw(st.sampled_from([None, 0, text["vocab_size"] - 1]))


def draw_files(draw: Any, stored: StoredCheckpoint) -> None:
    stored.shards = draw(st.sampled_from([0, 2, 3]))
    if draw(st.booleans()):
        stored.other_files["training_args.bin"] = pickle.dumps({"lr": 1})
        stored.other_files["pytorch_model.bin"] = b"not read"
    if draw(st.booleans()) and stored.shards:  # of an older save, and sorted last
        stale = stored_checkpoint("tiny-llama", 99)
        with tempfile.TemporaryDirectory() as folder:
            file = stale.write(Path(folder)) / "model.safetensors"
            stored.other_files["model-00009-of-00009.safetensors"] = file.read_bytes()


@pytest.mark.parametrize("preset", PRESETS)
def test_whole_and_streamed_reading_equal_from_pretrained_or_refuse(preset: str) -> None:
    @given(checkpoints(preset))
    @settings(max_examples=25, deadline=None, derandomize=True)
    def check(stored: StoredCheckpoint) -> None:
        with tempfile.TemporaryDirectory() as folder:
            check_folder(stored.write(Path(folder)))

    check()


def check_folder(folder: Path) -> None:
    expected = read_by_transformers(folder)
    if expected is None:
        with pytest.raises(ModelError):
            read_description(folder)
        return
    description = read_description(folder)
    whole = load_module(description)
    assert_equal(dict(whole.state_dict()), expected)
    checkpoint = StreamedCheckpoint(folder, description.config.tree)  # type: ignore[attr-defined]
    tensors = dict(checkpoint.tensors(checkpoint.names))
    assert_equal({name: tensors[checkpoint.source(name)] for name in expected}, expected)


def assert_equal(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert state[name].dtype == value.dtype, name
        assert torch.equal(state[name], value), name
