"""Techniques for a checkpoint; each returns a short text about the outcome."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import transformers
import yaml

from benchmarks.intake.cases import CONVERSATIONS, TOKENS, write_conversations
from benchmarks.intake.invocation import Crashed, invoke, outputs_of
from calibration.sources.image_text.source import ImageText, ImageTextConfig
from compressor.artifacts.artifact import open_artifact
from compressor.data.contract import SourceContext
from compressor.models.checkpoint.description import read_description
from compressor.models.families.transformers.generic.sample import end_texts, sample_batch
from compressor.runtimes.formats import open_session

OTHER_SAMPLES = 256  # with 32, ratios of KL divergences of one classifier vary by a factor of 2
CALIBRATION = {"data": "samples", "num_samples": 8, "batch_size": 4}
EXPORT = {"type": "export-onnx", "parity": {"data": "samples", "num_samples": 4}}
AWQ = {
    "type": "awq",
    "calibration": CALIBRATION,
    "group_size": 16,
    "format": "compressed-tensors",
    "symmetric": True,  # transformers does not load zero-points of this format
}
NEAREST = {**AWQ, "refine": "none", "scaling": False, "error_compensation": 0}
QAT = {"type": "qat", "calibration": {"data": "samples", "num_samples": 8, "batch_size": 4}}
PRUNE = {"type": "prune", "target": {"params": 0.95}, "importance": "magnitude", "repair": False}


def run_pipeline(folder: Path, name: str, data: Mapping[str, Any], steps: list[Any]) -> None:
    """Run steps one after another on the model.

    Raises:
        Refused: the program reported an error.
        Crashed: it ended by another exception.
    """
    file = folder / f"{name}.yaml"
    document = {
        "version": 1,
        "name": name,
        "model": {"path": "model"},
        "data": {"samples": dict(data)},
        "passes": steps,
    }
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    invoke("run", file, "--output-dir", folder / "artifacts")


def export_onnx(folder: Path, data: Mapping[str, Any]) -> str:
    """Export, and say whether the graph has a key-value cache."""
    run_pipeline(folder, "export", data, [EXPORT])
    model = outputs_of(folder, "export-onnx") / "model"
    graph = onnx.load(model / "model.onnx", load_external_data=False).graph
    parts = ["right"]
    if any("past" in value.name for value in graph.input):
        parts.append("cache")
    if others := sorted(file.stem for file in model.glob("*.onnx") if file.stem != "model"):
        parts.append(" + ".join(others))
    return ", ".join(parts)


def other_samples(folder: Path) -> dict[str, Any]:
    """Return random inputs that differ from the calibration samples."""
    specs = read_description(folder / "model").signature.inputs
    batch = sample_batch(specs, batch=OTHER_SAMPLES, tokens=TOKENS)
    torch.manual_seed(1)
    for spec in specs:
        value = batch.get(spec.name)
        if value is not None and value.dtype == torch.int64 and (spec.below or 0) > 8:
            batch[spec.name] = end_texts(torch.randint(4, spec.below or 8, value.shape), spec)
    return {name: value.numpy() for name, value in batch.items()}


def other_conversations(folder: Path) -> dict[str, Any]:
    """Return the inputs of conversations that differ from the calibration samples."""
    others = folder / "others"
    others.mkdir(exist_ok=True)
    fields = {**write_conversations(others, seed=1), "processor": str(folder.resolve() / "model")}
    source = ImageText()
    dataset = source.load(ImageTextConfig.model_validate(fields), SourceContext(others))
    batch = dataset.batch(np.arange(CONVERSATIONS))
    return {name: batch[name] for name in dataset.input_names}


def divergence(folder: Path, packed: Path) -> float:
    """Return the mean KL divergence of a packed model's logits.

    It is the mean squared error of a single logit, and 1 − cosine without logits.
    It is measured on other samples of the kind that the model was calibrated on.
    """
    description = read_description(folder / "model")
    has_images = (folder / "samples.jsonl").is_file()
    feeds = other_conversations(folder) if has_images else other_samples(folder)
    valid = torch.from_numpy(feeds["attention_mask"]).bool() if has_images else ...
    outputs = []
    for kind, path in (("torch", folder / "model"), ("packed", packed / "model")):
        with open_session(kind, path, threads=1) as session:
            result = session.run(feeds)
            outputs.append(torch.from_numpy(result[session.output_names[0]]).double())
    expected, actual = outputs
    if expected.shape[-1] == 1:  # one class has probability 1
        return float((expected - actual).square().mean())
    if description.signature.outputs[0] == "logits":
        logs = [value.log_softmax(dim=-1) for value in (expected, actual)]
        return float((logs[0].exp() * (logs[0] - logs[1])).sum(dim=-1)[valid].mean())
    return float((1 - torch.cosine_similarity(expected, actual, dim=-1)).mean())


def awq(folder: Path, data: Mapping[str, Any]) -> str:
    """Quantize with and without search, and compare the divergences."""
    run_pipeline(folder, "nearest", data, [NEAREST])
    nearest = outputs_of(folder, "awq")
    run_pipeline(folder, "awq", data, [AWQ])
    searched = outputs_of(folder, "awq")
    if not (not_loaded := _is_noted_not_to_load(searched)):
        load_pretrained(searched / "model")
    ratio = divergence(folder, searched) / max(divergence(folder, nearest), 1e-12)
    remark = "; transformers does not load it, as the run notes" if not_loaded else ""
    return f"KL ×{ratio:.2f} of nearest{remark}"


def _is_noted_not_to_load(packed: Path) -> bool:
    """Return True if the run notes that ``from_pretrained`` does not load the packed layers."""
    notes: Any = open_artifact(packed).manifest.summary.get("notes", [])
    faults = ("random weights", "refuses packed checkpoints")
    return any(fault in note for note in notes for fault in faults)


def qat(folder: Path, data: Mapping[str, Any]) -> str:
    """Quantize to INT8 and export."""
    run_pipeline(folder, "qat", data, [QAT, EXPORT])
    return "right"


def prune(folder: Path, data: Mapping[str, Any]) -> str:
    """Prune to 95 % of the parameters, and load the result as transformers does."""
    run_pipeline(folder, "prune", data, [PRUNE])
    pruned = outputs_of(folder, "prune") / "model"
    load_pretrained(pruned)
    sizes = [
        sum(read_description(path).family.parameters(read_description(path).config).values())
        for path in (folder / "model", pruned)
    ]
    return f"{sizes[1] / sizes[0]:.0%} of the parameters"


def load_pretrained(folder: Path) -> None:
    """Load a checkpoint as its consumer does; every tensor must be found."""
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    _, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    missing = [key for key in info["missing_keys"] if "weight_zero_point" not in key]
    if missing or info["mismatched_keys"]:
        raise Crashed(f"from_pretrained misses {missing[:3]} {info['mismatched_keys']}")


TECHNIQUES: dict[str, Callable[[Path, Mapping[str, Any]], str]] = {
    "export-onnx": export_onnx,
    "awq": awq,
    "qat": qat,
    "prune": prune,
}
