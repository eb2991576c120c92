"""Examples that the torture mutates: tiny models of every format, data of every source, pipelines.

Each example is a folder, the files in it that are mutated, and the commands that read them.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

_GENERATE = ("generate", "m", "--max-tokens", "2")
Commands = Callable[[random.Random], list[list[str]]]


@dataclass(slots=True)
class Example:
    """One folder to attack."""

    folder: Path
    patterns: tuple[str, ...]
    """The files that are mutated, by pattern."""
    commands: Commands
    allowed: frozenset[int] = field(default=frozenset({0, 2}))

    def targets(self, folder: Path) -> list[Path]:
        """Return the files to mutate in a copy of the folder."""
        return sorted(
            {file for pattern in self.patterns for file in folder.glob(pattern) if file.is_file()}
        )


def warm_up() -> None:
    """Import what the commands import, so that a forked child starts at once."""
    import onnx  # noqa: F401
    import onnxruntime  # noqa: F401
    import PIL.Image  # noqa: F401
    import torch
    import transformers

    import cli  # noqa: F401
    from compressor import commands  # noqa: F401
    from compressor.analysis import model_report  # noqa: F401
    from compressor.engine.plan import planner  # noqa: F401
    from compressor.generation import generate  # noqa: F401
    from compressor.graphs import files  # noqa: F401
    from compressor.models.families.transformers import family, processor  # noqa: F401
    from compressor.reports.console import models, plans  # noqa: F401
    from compressor.runtimes.formats import installed_formats

    torch.set_num_threads(1)
    installed_formats()
    _ = transformers.AutoTokenizer, transformers.AutoConfig, transformers.AutoImageProcessor


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
        _write_pipeline(root / name)
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


def _write_pipeline(folder: Path) -> None:
    tree = {
        "version": 1,
        "name": "attacked",
        "model": {"path": "m"},
        "data": {
            "text": {"source": "text", "path": "t.txt", "tokenizer": "m", "sequence_length": 16}
        },
        "passes": [
            {"type": "awq", "name": "awq", "calibration": {"data": "text"}, "group_size": 16}
        ],
    }
    (folder / "t.txt").write_text(" ".join(f"w{number % 90 + 5}" for number in range(3000)))
    (folder / "awq.yaml").write_text(yaml.safe_dump(tree))
    tree["passes"] = [{"type": "export-onnx", "name": "onnx", "parity": {"data": "text"}}]
    (folder / "export-onnx.yaml").write_text(yaml.safe_dump(tree))


def _model_commands(pass_name: str | None, *more: list[str]) -> Commands:
    def commands(rng: random.Random) -> list[list[str]]:
        chosen = [
            ["show", "m"],
            ["init", "new", "--from", "m"],
            rng.choice((["show", "m", "--json"], ["compare", "m", "original", "--tensors"])),
            *(more or (["generate", "m", "--prompt", "w5 w6", "--max-tokens", "2", "--raw"],)),
            ["plan", "awq.yaml"],
        ]
        if pass_name is not None and rng.random() < 0.25:
            chosen.append(["run", f"{pass_name}.yaml", "-o", "store"])
        return chosen

    return commands


def _show_commands(path: str) -> Commands:
    return lambda _: [["show", path], ["show", path, "--json"], ["show", "m"]]


def pipelines(root: Path) -> list[Example]:
    """Return the pipelines of the examples beside a tiny model."""
    from tests.support.decoders import save_decoder
    from tests.support.processors import write_processor

    examples = []
    repository = Path(__file__).parents[2]
    for number, file in enumerate(sorted((repository / "examples").glob("*/*.yaml"))):
        folder = root / str(number)
        folder.mkdir(parents=True)
        shutil.copy(file, folder / "pipeline.yaml")
        examples.append(Example(folder, ("pipeline.yaml",), _pipeline_commands))
    folder = root / "tiny"
    save_decoder(folder / "m", "tiny-llama")
    write_processor(folder / "m")
    _write_pipeline(folder)
    (folder / "awq.yaml").rename(folder / "pipeline.yaml")
    return [*examples, *[Example(folder, ("pipeline.yaml",), _pipeline_commands)] * 3]


def _pipeline_commands(rng: random.Random) -> list[list[str]]:
    return [["validate", "pipeline.yaml"], ["plan", "pipeline.yaml"]] + (
        [["run", "pipeline.yaml", "-o", "store", "--dry-run"]] if rng.random() < 0.1 else []
    )


def data_files(root: Path) -> list[Example]:
    """Return a data set of every source, read by a step that trains or calibrates on it."""
    from tests.support.decoders import save_decoder
    from tests.support.processors import (
        message,
        write_conversations,
        write_picture,
        write_processor,
    )
    from tests.support.speech import write_wav

    folder = root / "all"
    folder.mkdir(parents=True)
    save_decoder(folder / "m", "tiny-llama")
    write_processor(folder / "m")
    rows = [
        {"text": " ".join(f"w{n}" for n in range(5 + k, 90)), "label": k % 2} for k in range(40)
    ]
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "t.json").write_text(json.dumps(rows))
    (folder / "t.csv").write_text(
        "text,label\n" + "".join(f"{r['text']},{r['label']}\n" for r in rows)
    )
    (folder / "t.txt").write_text("\n".join(row["text"] for row in rows))
    for name in ("a", "b"):
        (folder / "pictures" / name).mkdir(parents=True)
        for number in range(4):
            write_picture(folder / "pictures" / name / f"{number}.png", 20 + number, 20)
            write_picture(folder / "pictures" / name / f"{number}.jpg", 20 + number, 20)
    (folder / "sound").mkdir()
    for number in range(4):
        write_wav(folder / "sound" / f"{number}.wav", 0.2, number)
    np.savez(folder / "x.npz", x=np.ones((16, 4), np.float32))
    write_conversations(
        folder / "c.jsonl", [message("user", "w7", "pictures/a/0.png"), message("assistant", "w8")]
    )
    _parquet(folder / "t.parquet", rows)
    sources: dict[str, dict[str, Any]] = {
        "jsonl": {"source": "text", "path": "t.jsonl", "tokenizer": "m", "sequence_length": 16},
        "json": {"source": "text", "path": "t.json", "tokenizer": "m", "sequence_length": 16},
        "csv": {"source": "text", "path": "t.csv", "tokenizer": "m", "sequence_length": 16},
        "parquet": {"source": "text", "path": "t.parquet", "tokenizer": "m", "sequence_length": 16},
        "txt": {"source": "text", "path": "t.txt", "tokenizer": "m", "sequence_length": 16},
        "chat": {"source": "image-text", "path": "c.jsonl", "processor": "m"},
        "images": {"source": "images", "path": "pictures", "image_size": 16},
        "audio": {"source": "audio", "path": "sound"},
        "arrays": {"source": "arrays", "path": "x.npz"},
    }
    for name, source in sources.items():
        tree = {
            "version": 1,
            "name": "attacked",
            "model": {"path": "m"},
            "data": {"d": source},
            "passes": [
                {"type": "awq", "name": "awq", "calibration": {"data": "d"}, "group_size": 16}
            ],
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    files = {
        "jsonl": "t.jsonl",
        "json": "t.json",
        "csv": "t.csv",
        "parquet": "t.parquet",
        "txt": "t.txt",
        "chat": "c.jsonl",
        "images": "pictures/a/*",
        "audio": "sound/*",
        "arrays": "x.npz",
    }
    return [
        Example(folder, (pattern,), _data_commands(name), frozenset({0, 2}))
        for name, pattern in files.items()
    ]


def _parquet(file: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), file)


def _data_commands(name: str) -> Commands:
    def commands(rng: random.Random) -> list[list[str]]:
        run = [["run", f"{name}.yaml", "-o", "store"]] if rng.random() < 0.5 else []
        return [["validate", f"{name}.yaml"], ["plan", f"{name}.yaml"], *run]

    return commands


def archives(root: Path) -> list[Example]:
    """Return an archive of an artifact, and the store that holds it."""
    from tests.torture.children import run_command

    folder = root / "a"
    folder.mkdir(parents=True)
    toy = root / "toy"
    from tests.support.tiny_files import tiny_onnx

    (toy / "model").mkdir(parents=True)
    (toy / "model" / "model.onnx").write_bytes(tiny_onnx())
    (toy / "p.yaml").write_text(
        "version: 1\nname: toy\nmodel: {path: model}\npasses:\n  - {type: toy, name: first}\n"
    )
    outcome = run_command(["run", "p.yaml", "-o", "store"], toy)
    assert not outcome.code, outcome.output
    artifact = next(path for path in (toy / "store").iterdir() if path.name.startswith("toy-"))
    outcome = run_command(["archive", str(artifact), str(folder / "x.tar.zst")], toy)
    assert not outcome.code, outcome.output
    shutil.copytree(toy / "store", folder / "store")
    name = artifact.name
    readers: Commands = lambda _: [  # noqa: E731
        ["show", f"store/{name}"],
        ["verify", "store"],
        ["show", "store"],
        ["report", "store"],
        ["compare", f"store/{name}", f"store/{name}"],
    ]
    return [
        Example(
            folder,
            ("x.tar.zst",),
            lambda _: [["restore", "x.tar.zst", "-o", "new"], ["show", "x.tar.zst"]],
            frozenset({0, 4, 2}),
        ),
        Example(folder, ("store/**/*.json",), readers, frozenset({0, 2, 4})),
    ]
