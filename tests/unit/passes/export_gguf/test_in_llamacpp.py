"""llama.cpp opens the files and computes what torch does, where xllamacpp is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer

from compressor.runtimes.llamacpp.model import LlamaCppModel
from tests.support.decoders import pack_decoder
from tests.support.gguf_checkpoints import CHECKPOINTS, export_gguf, save_gguf_parent

pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")

TOKENS = np.random.default_rng(0).integers(3, 380, 48).tolist()
TEXT = "Hello there, isn't it 1234?\n  <think>  Ümlaut 中文"
SYMMETRIC = {"format": "compressed-tensors", "symmetric": True, "dtype": "float16"}


def load_class(folder: Path) -> torch.nn.Module:
    """Return the class that config.json names, in float32."""
    (name,) = transformers.AutoConfig.from_pretrained(folder).architectures
    module: torch.nn.Module = getattr(transformers, name).from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return module


def torch_logits(folder: Path) -> np.ndarray:
    """Return the logits after each token, computed in float32."""
    model = load_class(folder)
    with torch.no_grad():
        logits: np.ndarray = model(torch.tensor([TOKENS])).logits[0].numpy()
    return logits


@pytest.mark.parametrize("name", list(CHECKPOINTS))
def test_logits_of_every_architecture_are_those_of_torch(name: str, tmp_path: Path) -> None:
    parent = save_gguf_parent(tmp_path / "parent", name)
    file, _ = export_gguf(parent, tmp_path / "out")
    expected = torch_logits(parent.model)
    model = LlamaCppModel(file, threads=1)
    [logits] = model.logits([np.array(TOKENS)])
    tokenizer = Tokenizer.from_file(str(parent.model / "tokenizer.json"))
    assert model.tokens(TEXT) == tokenizer.encode(TEXT).ids
    model.close()
    # llama.cpp keeps keys and values in float16.
    np.testing.assert_allclose(logits, expected, atol=1.5e-2 * expected.std())


@pytest.mark.parametrize("packing", [{}, SYMMETRIC, {**SYMMETRIC, "bits": 8}])
def test_logits_of_packed_checkpoints_follow_their_weights(
    packing: dict[str, Any], tmp_path: Path
) -> None:
    source = save_gguf_parent(tmp_path / "parent")
    parent = pack_decoder(source, tmp_path / "awq", gguf_scales=True, **packing)
    file, _ = export_gguf(parent, tmp_path / "out")
    from compressor.models.checkpoint.loading import load_module

    module = load_module(parent.model, "cpu").float()
    with torch.no_grad():
        expected = module(input_ids=torch.tensor([TOKENS])).logits[0].numpy()
    model = LlamaCppModel(file, threads=1)
    [logits] = model.logits([np.array(TOKENS)])
    model.close()
    # Activations are rounded to 8 bits there.
    error = np.square(logits - expected).mean() / np.square(expected - expected.mean()).mean()
    assert error < 1e-3
