"""Sizes of update packages of AutoGLM-Phone-9B's shape: rank 8 on q and v, and (IA)³.

    python -m benchmarks.delta

40 layers, hidden 4096, 32 heads and 2 key heads of 128. Factors are normal values. The base is a
stand-in: packages depend on it by digests alone. Each package is written by the pass, applied by
the command's code, and compared with the digest that it announces.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import safetensors.numpy

from compressor.runtimes.delta.apply import Application, apply_package
from compressor.runtimes.delta.slot import now
from tests.support.deltas import float_base, make_package

LAYERS, HIDDEN, HEAD, HEADS, KEY_HEADS, FFN = 40, 4096, 128, 32, 2, 13696
PREFIX = "base_model.model.model.language_model.layers"
LORA = {"self_attn.q_proj": HEADS * HEAD, "self_attn.v_proj": KEY_HEADS * HEAD}
IA3 = {
    "self_attn.k_proj": KEY_HEADS * HEAD,
    "self_attn.v_proj": KEY_HEADS * HEAD,
    "mlp.down_proj": FFN,
}


def lora_tensors(rank: int) -> dict[str, np.ndarray]:
    """Return factors A and B of every layer."""
    random = np.random.default_rng(0)
    tensors = {}
    for layer in range(LAYERS):
        for name, outputs in LORA.items():
            for factor, shape in (("A", (rank, HIDDEN)), ("B", (outputs, rank))):
                key = f"{PREFIX}.{layer}.{name}.lora_{factor}.weight"
                tensors[key] = random.normal(0, 0.02, shape).astype(np.float32)
    return tensors


def ia3_tensors() -> dict[str, np.ndarray]:
    """Return the factors of k, v and the input of down in every layer."""
    random = np.random.default_rng(0)
    tensors = {}
    for layer in range(LAYERS):
        for name, size in IA3.items():
            shape = (1, size) if name == "mlp.down_proj" else (size, 1)
            values = random.normal(1, 0.05, shape).astype(np.float32)
            tensors[f"{PREFIX}.{layer}.{name}.ia3_l"] = values
    return tensors


def measure(home: Path, title: str, tensors: dict[str, np.ndarray], kind: str) -> None:
    """Print size, loss and times of the packages of an adapter."""
    model = home / title / "model"
    model.mkdir(parents=True)
    weights = model / "adapter_model.safetensors"
    safetensors.numpy.save_file(tensors, weights, metadata={"format": "pt"})
    (model / "adapter_config.json").write_text(f'{{"peft_type": "{kind}"}}')
    values = sum(value.size for value in tensors.values())
    print(f"{title}: {values:,} numbers, {weights.stat().st_size / 1e6:.2f} MB in PEFT's files")
    for encoding in ("int8", "float16", "exact"):
        folder = home / title / encoding
        started = time.perf_counter()
        file, output = make_package(model, home / "base", folder, encoding=encoding, max_error=1.0)
        packed = time.perf_counter()
        request = Application(file, home / "base", folder / "out", None, False, False, now())
        update, _ = apply_package(request)
        applied = time.perf_counter()
        assert update.digest == output.summary["result"]
        loss = output.summary["loss"]
        error = 0.0 if loss is None else loss["relative_error"]
        print(
            f"  {encoding:8} {file.stat().st_size / 1e6:6.2f} MB  largest relative error "
            f"{error:.1e}  packed in {packed - started:.1f} s, applied in {applied - packed:.2f} s"
        )


def measure_patch(home: Path) -> None:
    """Print size and times of a patch: one of 14 matrices changed, and one is new before them."""
    old, new = float_base(home / "old" / "model"), float_base(home / "new" / "model")
    random = np.random.default_rng(0)
    weights = safetensors.numpy.load_file(old / "model.safetensors")
    for index in range(14):
        weights[f"x.{index}"] = random.normal(size=(4096, 1024)).astype(np.float16)
    safetensors.numpy.save_file(weights, old / "model.safetensors", metadata={"format": "pt"})
    weights["x.7"] = weights["x.7"] + np.float16(1)
    weights["a"] = random.normal(size=(1024, 1024)).astype(np.float16)
    safetensors.numpy.save_file(weights, new / "model.safetensors", metadata={"format": "pt"})
    started = time.perf_counter()
    file, output = make_package(new, old, home / "patch", "torch")
    packed = time.perf_counter()
    apply_package(Application(file, old, home / "patch" / "out", None, False, False, now()))
    applied = time.perf_counter()
    print(
        f"patch of {output.summary['model_bytes'] / 1e6:.0f} MB: "
        f"{file.stat().st_size / 1e6:.2f} MB, "
        f"packed in {packed - started:.0f} s, applied in {applied - packed:.1f} s"
    )


def main() -> None:
    """Measure LoRA of rank 8 and 16, (IA)³, and a patch between two models."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        float_base(home / "base")
        for rank in (8, 16):
            measure(home, f"LoRA r {rank} on q and v", lora_tensors(rank), "LORA")
        measure(home, "(IA)³ on k, v and down", ia3_tensors(), "IA3")
        measure_patch(home)


if __name__ == "__main__":
    main()
