"""Take a small random checkpoint of every class through every pass that applies, and print a table.

    python -m benchmarks.intake [--only gpt2 bert] [--kinds decoder] [--steps awq] [--work FOLDER]

A class counts as accepted if `plan` exits with 0. `export-onnx` compares the graph with torch on
real samples and fails if they differ, so a step that ends well is right. For `awq`, the mean KL
divergence from the float model on other samples is compared with that of rounding to nearest.
Pruned and packed checkpoints are loaded again by `from_pretrained`. Results are kept in FOLDER as
they come, so an interrupted run continues.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import torch
import transformers
import yaml
from PIL import Image
from rich.console import Console
from rich.table import Table
from typer.testing import CliRunner

from calibration.sources.image_text.source import ImageText, ImageTextConfig
from cli import app
from compressor.data.contract import SourceContext
from compressor.errors import CompressError
from compressor.models.checkpoint.description import read_description
from compressor.models.families.transformers.generic.sample import end_texts, sample_batch
from compressor.runtimes.formats import open_session
from tests.support.decoder_classes import DECODERS, NOTED_DECODERS, write_decoder
from tests.support.encoder_classes import CLASSES
from tests.support.further_encoder_classes import FURTHER_CLASSES
from tests.support.vision_language import FURTHER_VLMS, VLMS, write_vlm

SAMPLES, TOKENS, CONVERSATIONS = 32, 24, 12
OTHER_SAMPLES = 256  # with 32, ratios of KL divergences of one classifier vary by a factor of 2
TIMEOUT_SECONDS = 300
NOTED_ENCODERS = {
    *("bert", "bert-mlm", "bert-base", "roberta", "xlm-roberta", "deberta-v2", "albert"),
    *("distilbert", "modernbert", "xlm-roberta-embed", "t5", "mt5", "bart", "whisper"),
    *("wav2vec2", "vit", "deit", "swin", "siglip", "clip", "siglip-vision", "convnext"),
    *("resnet", "mobilenet_v2", "efficientnet", "detr", "rt_detr", "yolos", "sam", "bert-token"),
}
"""Encoders, encoder-decoders, vision and audio classes of the notes on intake."""
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
        if self.kind == "encoder":
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


class Refused(Exception):  # noqa: N818
    """The program ended with an error message."""


class Crashed(Exception):  # noqa: N818
    """The program ended with a traceback."""


class OutOfTime(BaseException):
    """An action took too long; no handler of errors takes it for one of its own."""


def invoke(*arguments: object) -> str:
    """Run a command in this process, and return what it printed."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    error = result.exception
    if isinstance(error, CompressError):
        raise Refused(" ".join(f"{error.what}".split())[:300])
    if error is not None and not isinstance(error, SystemExit):
        lines = traceback.format_exception(error)
        raise Crashed(f"{type(error).__name__}: {error}"[:300] + "".join(lines[-3:]))
    if result.exit_code:
        raise Refused(f"exit {result.exit_code}: {result.output[-300:]}")
    return result.output


def outputs_of(folder: Path, step: str) -> Path:
    """Return the newest artifact of a kind of step."""
    found = sorted((folder / "artifacts").glob(f"{step}-*"), key=lambda path: path.stat().st_mtime)
    return found[-1]


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
    """Return the mean KL divergence of a packed model's logits; 1 − cosine without logits.

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
    load_pretrained(searched / "model")
    ratio = divergence(folder, searched) / max(divergence(folder, nearest), 1e-12)
    return f"KL ×{ratio:.2f} of nearest"


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


def attempt(action: Callable[[], str]) -> dict[str, str]:
    """Return the outcome of one technique on one class."""
    started = time.process_time()
    signal.signal(signal.SIGPROF, stop_action)
    signal.setitimer(signal.ITIMER_PROF, TIMEOUT_SECONDS)
    try:
        outcome, detail = "ok", action()
    except Refused as error:
        outcome, detail = "refused", str(error)
    except OutOfTime:
        outcome, detail = "crashed", f"not done after {TIMEOUT_SECONDS} s of CPU time"
    except Exception as error:  # noqa: BLE001  the table lists it
        outcome, detail = "crashed", f"{type(error).__name__}: {error}"[:1500]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return {"outcome": outcome, "detail": detail, "seconds": f"{time.process_time() - started:.0f}"}


def stop_action(*_: object) -> None:
    """End an action that takes too long."""
    raise OutOfTime


@contextmanager
def other_weights(number: int) -> Iterator[None]:
    """Let classes draw other random weights; 0 is the usual ones."""
    seed = torch.manual_seed
    with patch.object(torch, "manual_seed", lambda value: seed(value + 1000 * number)):
        yield


def take(case: Case, work: Path, steps: list[str], weights: int = 0) -> dict[str, dict[str, str]]:
    """Return the outcome of each technique on a class."""
    folder = work / case.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with other_weights(weights):
        case.write(folder / "model")
    data: dict[str, Any] = {}

    def plan() -> str:
        data.update(write_samples(case, folder))
        document = {"version": 1, "name": "plan", "model": {"path": "model"}, "passes": []}
        document["data"] = {"samples": data}
        document["passes"] = [EXPORT]
        (folder / "plan.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
        invoke("plan", folder / "plan.yaml", "--output-dir", folder / "artifacts")
        return "accepted"

    results = {"plan": attempt(plan)}
    for step in case.steps:
        if results["plan"]["outcome"] == "ok" and (not steps or step in steps):
            results[step] = attempt(lambda step=step: TECHNIQUES[step](folder, data))
    shutil.rmtree(folder / "artifacts", ignore_errors=True)
    return results


def print_table(results: Mapping[str, Any], selected: list[Case]) -> None:
    """Print a row for each class, and the sums by kind."""
    names = ("plan", *TECHNIQUES)
    table = Table("class", "kind", *names)
    marks = {"ok": "✓", "refused": "refused", "crashed": "CRASHED"}
    for case in selected:
        row = results.get(case.name, {})
        cells = [row.get(name, {}) for name in names]
        texts = [
            f"{marks[cell['outcome']]} {cell['detail'][:40] if cell['outcome'] == 'ok' else ''}"
            if cell
            else ""
            for cell in cells
        ]
        table.add_row(case.name + ("" if case.noted else " *"), case.kind, *texts)
    console = Console(width=180)
    console.print(table)
    for kind in ("decoder", "vision-language", "encoder"):
        for noted in (True, False):
            group = [case for case in selected if case.kind == kind and case.noted is noted]
            counts = {
                name: (
                    sum(
                        results.get(case.name, {}).get(name, {}).get("outcome") == "ok"
                        for case in group
                    ),
                    sum(name in results.get(case.name, {}) for case in group),
                )
                for name in names
            }
            parts = [f"{name} {ok}/{tried}" for name, (ok, tried) in counts.items() if tried]
            if parts:
                where = "of the notes" if noted else "beyond (*)"
                console.print(f"{kind}, {where}: {', '.join(parts)}")
    cached = sum(
        "cache" in row.get("export-onnx", {}).get("detail", "")
        for row in (results.get(case.name, {}) for case in selected)
    )
    console.print(f"graphs with a key-value cache: {cached}")
    for case in selected:
        for name, cell in results.get(case.name, {}).items():
            if cell["outcome"] != "ok":
                console.print(f"{case.name} {name}: {cell['outcome']}: {cell['detail'][:400]}")


def main() -> None:
    """Run the classes that are not done yet, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--kinds", nargs="*", default=[])
    parser.add_argument("--steps", nargs="*", default=[])
    parser.add_argument("--work", type=Path, default=Path("intake-work"))
    parser.add_argument("--weights", type=int, default=0, help="number of another set of weights")
    parser.add_argument("--print", action="store_true", help="print kept results alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    file = options.work / "results.json"
    results = json.loads(file.read_text()) if file.is_file() else {}
    selected = [
        case
        for case in cases()
        if (not options.only or case.name in options.only)
        and (not options.kinds or case.kind in options.kinds)
    ]
    for case in selected:
        done = results.get(case.name, {})
        wanted = [step for step in options.steps or case.steps if step in case.steps]
        if options.print or (done and all(step in done for step in wanted)):
            continue
        outcome = take(case, options.work, options.steps, options.weights)
        results[case.name] = {**done, **outcome}
        file.write_text(json.dumps(results, indent=1))
        states = {name: cell["outcome"] for name, cell in results[case.name].items()}
        sys.stderr.write(f"{case.name}: {states}\n")
    print_table(results, selected)


if __name__ == "__main__":
    main()
