"""Builders for tests of update packages: bases, adapters of PEFT, and packages."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from compressor.artifacts.artifact import Artifact
from compressor.artifacts.manifest import Environment, Manifest, PassRecord
from compressor.models.adapters.base import AdapterBase, write_base
from compressor.runtimes.delta.apply import Application
from compressor.runtimes.delta.identity import open_base
from compressor.runtimes.delta.package import FILE
from passes.delta.config import DeltaConfig
from passes.delta.step import Delta
from tests.support.awq import AUTOAWQ, NEAREST, pass_context, run_awq, save_checkpoint
from tests.support.text_checkpoints import write_word_tokenizer

NOON = datetime.datetime(2026, 12, 1, 12, tzinfo=datetime.UTC)
HIDDEN = 64


def float_base(folder: Path) -> Path:
    """Save a tiny Llama with a tokenizer."""
    save_checkpoint(folder)
    return write_word_tokenizer(folder)


def packed_base(folder: Path, **fields: Any) -> Path:
    """Save a tiny Llama with packed weights and a tokenizer."""
    parent = save_checkpoint(folder / "float")
    packed, _ = run_awq(parent, folder, {**AUTOAWQ, **NEAREST, **fields})
    return write_word_tokenizer(packed)


def peft_adapter(folder: Path, base: Path, config: Any, seed: int = 0) -> Path:
    """Save an adapter of PEFT with random factors, and ``base.json`` beside it.

    Args:
        folder: its folder.
        base: the model that it refers to; a float copy of a packed one lies in ``../float``.
        config: PEFT's config.
        seed: seed of the factors.
    """
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    source = base if (base.parent / "float") == base else base.parent / "float"
    source = source if source.is_dir() else base
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(source), config)
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        if value.requires_grad:
            noise = torch.randn(value.shape, generator=generator)
            value.data = 1 + 0.1 * noise if "ia3" in name else 0.1 * noise
    model.save_pretrained(folder)
    identity = open_base(base)
    write_base(AdapterBase(artifact=None, digest=identity.digest, name=str(base)), folder)
    return folder


def lora_adapter(folder: Path, base: Path, seed: int = 0, rank: int = 8) -> Path:
    """Save a LoRA adapter on q and v."""
    from peft import LoraConfig

    config = LoraConfig(r=rank, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    return peft_adapter(folder, base, config, seed)


def ia3_adapter(folder: Path, base: Path) -> Path:
    """Save an (IA)³ adapter on k, v and the input of down."""
    from peft import IA3Config

    config = IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
    )
    return peft_adapter(folder, base, config)


def written_adapter(folder: Path, base: Path, shapes: dict[str, tuple[int, int]]) -> Path:
    """Write an adapter without PEFT: LoRA factors of rank 8 on layers of the given shapes."""
    random = np.random.default_rng(0)
    tensors = {}
    for layer, (outputs, inputs) in shapes.items():
        for factor, shape in (("A", (8, inputs)), ("B", (outputs, 8))):
            values = random.normal(0, 0.02, shape).astype(np.float32)
            tensors[f"base_model.model.{layer}.lora_{factor}.weight"] = values
    folder.mkdir(parents=True)
    safetensors.numpy.save_file(
        tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"}
    )
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8}')
    identity = open_base(base)
    write_base(AdapterBase(artifact=None, digest=identity.digest, name=str(base)), folder)
    return folder


def model_artifact(model: Path, format_name: str) -> Artifact:
    """Return the artifact whose model lies in a folder ``model``."""
    manifest = Manifest(
        id="ab" * 32,
        step="source",
        format=format_name,
        parents={},
        pass_=PassRecord(name="source", version=1, config={}),
        seed=0,
        tools={},
        data={},
        files={},
        reports={},
        measured="",
        metrics=(),
        summary={},
        environment=Environment(
            platform="", cpu="", cores=1, memory_bytes=1, python="", threads=1, device="cpu"
        ),
        created="",
        seconds=0,
        peak_rss_bytes=0,
    )
    assert model.name == "model"
    return Artifact(model.parent, manifest)


def make_package(model: Path, base: Path, home: Path, format_name: str = "adapter", **fields: Any):
    """Run the pass ``delta`` with all its checks; return the package and the pass's output."""
    config = DeltaConfig.model_validate(
        {"base_path": str(base), "base_digest": open_base(base).digest, **fields}
    )
    context, out, step = pass_context(home), home / "package", Delta()
    out.mkdir(parents=True, exist_ok=True)
    parent = model_artifact(model, format_name)
    step.requires(config, parent, context)
    output = step.run(config, parent, out, context)
    return out / FILE, output


def application(package: Path, base: Path, out: Path, **fields: Any) -> Application:
    """Return a request at noon of 1 December 2026."""
    values = {"key": None, "signed": False, "merge": False, "now": NOON, **fields}
    return Application(package, base, out, **values)


def write_keys(folder: Path, name: str = "key") -> tuple[Path, Path]:
    """Write a pair of keys; return the private and the public one."""
    private = Ed25519PrivateKey.generate()
    files = folder / f"{name}.pem", folder / f"{name}.pub"
    files[0].write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    files[1].write_bytes(
        private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return files
