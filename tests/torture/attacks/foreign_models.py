"""Mutated models of every format: one file of each is damaged or replaced."""

from __future__ import annotations

import random
import shutil
from functools import partial
from pathlib import Path

from tests.torture.examples import Commands, Example, write_pipeline
from tests.torture.foreign_files import damaged
from tests.torture.registry import Attack

_GENERATE = ("generate", "m", "--max-tokens", "2")
_RUNS = 0.15
"""Share of the cases that run a pipeline."""


def models(root: Path) -> list[Example]:
    """Return tiny models: checkpoints, packed and exported ones, other families, adapters."""
    from tests.support.awq import save_model
    from tests.support.decoders import export_decoder, pack_decoder, save_decoder
    from tests.support.model_files import gguf_header
    from tests.support.processors import write_picture, write_processor
    from tests.support.speech import save_encoder_decoder, write_wav

    llama = save_decoder(root / "llama" / "m", "tiny-llama")
    write_processor(root / "llama" / "m")
    pack_decoder(llama, root / "packing").model.rename(_parent(root / "packed") / "m")
    write_processor(root / "packed" / "m")
    export_decoder(llama, root / "onnx" / "m")
    write_processor(root / "onnx" / "m")
    save_decoder(root / "vlm" / "m", "tiny-glm4v")
    write_processor(root / "vlm" / "m")
    write_picture(root / "vlm" / "p.png", 40, 30)
    save_encoder_decoder(root / "speech" / "m", "whisper")
    write_wav(root / "speech" / "a.wav", 1)
    save_model(root / "phone" / "m")
    (root / "gguf" / "m").mkdir(parents=True)
    (root / "gguf" / "m" / "x.gguf").write_bytes(gguf_header())
    _pickle(root / "pickle" / "m", llama.model)
    for name in ("llama", "packed", "onnx", "vlm", "speech", "phone"):
        shutil.copytree(root / name / "m", root / name / "original")
        _write_pipelines(root / name, packs=name in {"llama", "vlm", "phone"})
    everything = ("m/*",)
    return [
        Example(root / "llama", everything, _model_commands("awq")),
        Example(root / "packed", everything, _model_commands("export-onnx")),
        Example(
            root / "onnx", everything, _model_commands(None, ["lint", "m"]), frozenset({0, 1, 2})
        ),
        Example(
            root / "vlm",
            everything,
            _model_commands(
                "awq", ["generate", "m", "--prompt", "w5", "--image", "p.png", "--max-tokens", "2"]
            ),
        ),
        Example(
            root / "speech",
            everything,
            _model_commands(None, [*_GENERATE, "--audio", "a.wav"]),
        ),
        Example(root / "phone", everything, _model_commands("export-onnx")),
        Example(root / "gguf", everything, _show_commands("m/x.gguf")),
        Example(root / "pickle", everything, lambda _: [["show", "m"], ["convert", "m", "new"]]),
    ]


def _parent(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _pickle(folder: Path, source: Path) -> None:
    import torch
    from safetensors.torch import load_file

    folder.mkdir(parents=True)
    shutil.copy(source / "config.json", folder)
    torch.save(load_file(source / "model.safetensors"), folder / "pytorch_model.bin")


def _model_commands(pass_name: str | None, *more: list[str]) -> Commands:
    def commands(rng: random.Random) -> list[list[str]]:
        chosen = [
            ["show", "m"],
            ["init", "new", "--from", "m"],
            rng.choice((["show", "m", "--json"], ["compare", "m", "original", "--tensors"])),
            *(more or (["generate", "m", "--prompt", "w5 w6", "--max-tokens", "2", "--raw"],)),
            ["plan", "awq.yaml"],
        ]
        if pass_name is not None and rng.random() < _RUNS:
            chosen.append(["run", f"{pass_name}.yaml", "-o", "store"])
        return chosen

    return commands


def _show_commands(path: str) -> Commands:
    return lambda _: [["show", path], ["show", path, "--json"], ["show", "m"]]


def _write_pipelines(folder: Path, *, packs: bool) -> None:
    (folder / "t.txt").write_text(" ".join(f"w{number % 90 + 5}" for number in range(900)))
    data = {"source": "text", "path": "t.txt", "tokenizer": "m", "sequence_length": 16}
    calibration = {"data": "d", "num_samples": 4, "batch_size": 2}
    awq = {"type": "awq", "name": "awq", "calibration": calibration, "group_size": 16}
    write_pipeline(folder / "awq.yaml", "m", data, awq)
    export = {"type": "export-onnx", "name": "onnx"}
    if not packs:
        export["parity"] = {"data": "d"}
    write_pipeline(folder / "export-onnx.yaml", "m", data, export)


ATTACK = Attack(
    "foreign-models",
    "Mutated models of every format: exit 0 or 2, no traceback, no hang, at most 1 GB",
    partial(damaged, models, 500),
)
