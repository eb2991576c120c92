"""Irregular checkpoints go through packing and export with the values that transformers reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compressor.models.checkpoint.loading import load_module
from tests.support.awq import COMPRESSED_TENSORS, TOKENS, artifact, run_awq
from tests.support.checkpoints import (
    HEAD,
    StoredCheckpoint,
    read_by_transformers,
    stored_checkpoint,
)
from tests.support.decoders import export_decoder


def base_model_names(stored: StoredCheckpoint) -> None:
    stored.tensors = {name.removeprefix("model."): v for name, v in stored.tensors.items()}


def head_alone(stored: StoredCheckpoint) -> None:
    stored.tree["tie_word_embeddings"] = True
    stored.tensors[HEAD] = stored.tensors.pop(stored.embedding)


def different_head(stored: StoredCheckpoint) -> None:
    stored.tree["tie_word_embeddings"] = True
    stored.tensors[HEAD] = stored.tensors[stored.embedding].flip(0)


def old_buffers_and_stale_files(stored: StoredCheckpoint) -> None:
    stored.tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    stored.tree |= {"architectures": None, "quantization_config": None}
    stored.shards = 2
    stored.other_files = {
        "model-00009-of-00009.safetensors": b"a shard of an older save",
        "training_args.bin": b"a pickle",
    }


def bfloat16(stored: StoredCheckpoint) -> None:
    stored.tensors = {name: value.bfloat16() for name, value in stored.tensors.items()}
    stored.tree["torch_dtype"] = "bfloat16"


KINDS = (base_model_names, head_alone, different_head, old_buffers_and_stale_files, bfloat16)


CASES = [("tiny-llama", kind) for kind in KINDS] + [("tiny-glm4v", base_model_names)]


@pytest.mark.parametrize(("preset", "kind"), CASES)
def test_packed_and_exported_models_compute_what_transformers_reads(preset, kind, tmp_path):
    parent = write(kind, preset, tmp_path / "parent")
    expected = read_by_transformers(parent)
    assert expected is not None
    packed, _ = run_awq(artifact(parent), tmp_path, {**COMPRESSED_TENSORS, "bits": 8})
    module = load_module(packed)
    reference = load_module(parent).float()
    reference.load_state_dict({name: value.float() for name, value in expected.items()})
    assert agreement(module, reference) > 0.95
    left_over = {file.name for file in packed.iterdir() if "safetensors" not in file.name}
    assert left_over == {"config.json"}
    for number, model in enumerate((parent, packed)):  # the pass compares with torch
        export_decoder(artifact(model), tmp_path / f"onnx-{number}")


def write(kind, preset: str, folder: Path) -> Path:
    stored = stored_checkpoint(preset)
    for value in stored.tensors.values():
        if value.ndim == 2:  # random weights are so small that all logits are nearly equal
            value *= 4
    kind(stored)
    return stored.write(folder)


def agreement(module, reference) -> float:
    """Return the part of the tokens that both models predict alike."""
    with torch.inference_mode():
        first, second = (
            model(input_ids=torch.from_numpy(TOKENS))["logits"].argmax(-1)
            for model in (module, reference)
        )
    return float((first == second).float().mean())
