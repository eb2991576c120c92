"""The classes, with writers of their checkpoints and samples."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from compressor.models.checkpoint.description import read_description
from compressor.models.families.transformers.generic.sample import sample_batch
from tests.support.decoder_classes import DECODERS, NOTED_DECODERS, write_decoder
from tests.support.encoder_classes import CLASSES, TinyClass
from tests.support.further_encoder_classes import FURTHER_CLASSES
from tests.support.vision_language import FURTHER_VLMS, VLMS, write_vlm

UNLISTED = Path(__file__).with_name("unlisted.yaml")
"""Classes that were chosen after the passes were written."""
SAMPLES, TOKENS, CONVERSATIONS = 32, 24, 12
NOTED_ENCODERS = {
    *("bert", "bert-mlm", "bert-base", "roberta", "xlm-roberta", "deberta-v2", "albert"),
    *("distilbert", "modernbert", "xlm-roberta-embed", "t5", "mt5", "bart", "whisper"),
    *("wav2vec2", "vit", "deit", "swin", "siglip", "clip", "siglip-vision", "convnext"),
    *("resnet", "mobilenet_v2", "efficientnet", "detr", "rt_detr", "yolos", "sam", "bert-token"),
}
"""Encoders, encoder-decoders, vision and audio classes of the notes on intake."""


@dataclass(frozen=True)
class Case:
    """One class with a writer of its checkpoint."""

    name: str
    kind: str
    noted: bool
    write: Callable[[Path], Any]

    @property
    def steps(self) -> tuple[str, ...]:
        """Names of the techniques that apply."""
        if self.kind.endswith("encoder"):
            return ("export-onnx", "qat", "prune", "awq")
        return ("export-onnx", "awq", "prune")


def cases() -> Iterator[Case]:
    """Yield all classes."""
    for name in DECODERS:
        writer = lambda folder, name=name: write_decoder(folder, name)  # noqa: E731
        yield Case(name, "decoder", name in NOTED_DECODERS, writer)
    for name in {**VLMS, **FURTHER_VLMS}:
        writer = lambda folder, name=name: write_vlm(folder, name)  # noqa: E731
        yield Case(name, "vision-language", name in VLMS, writer)
    for name, tiny in {**CLASSES, **FURTHER_CLASSES}.items():
        writer = lambda folder, tiny=tiny: tiny.build().save_pretrained(folder)  # noqa: E731
        yield Case(name, "encoder", name in NOTED_ENCODERS, writer)
    for name, record in yaml.safe_load(UNLISTED.read_text()).items():
        tiny = TinyClass(record["class"], record["model_type"], "", record["fields"])
        writer = lambda folder, tiny=tiny: tiny.build().save_pretrained(folder)  # noqa: E731
        yield Case(name, f"unlisted {record['kind']}", False, writer)


def write_samples(case: Case, folder: Path) -> dict[str, Any]:
    """Write samples for a class, and return the data source that reads them."""
    if case.kind == "vision-language":
        return write_conversations(folder)
    specs = read_description(folder / "model").signature.inputs
    batch = sample_batch(specs, batch=SAMPLES, tokens=TOKENS)
    np.savez(folder / "samples.npz", **{name: value.numpy() for name, value in batch.items()})
    return {"source": "arrays", "path": "samples.npz"}


def write_conversations(folder: Path, seed: int = 0) -> dict[str, Any]:
    """Write conversations about images of different sizes."""
    generator = np.random.default_rng(seed)
    lines = []
    for number in range(CONVERSATIONS):
        height, width = generator.integers(28, 90, size=2)
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        words = " ".join(f"w{word}" for word in generator.integers(8, 200, size=6))
        answer = " ".join(f"w{word}" for word in generator.integers(8, 200, size=6))
        content = [{"type": "image", "path": f"{number}.png"}, {"type": "text", "text": words}]
        messages = [
            {"role": "user", "content": content},
            {"role": "assistant", "content": answer},
        ]
        lines.append(json.dumps({"messages": messages}))
    (folder / "samples.jsonl").write_text("\n".join(lines) + "\n")
    return {"source": "image-text", "path": "samples.jsonl", "processor": "model"}
