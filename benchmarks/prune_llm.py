"""Compare cuts of 10, 20 and 30 % of SmolLM2-135M's MACs: layers, widths, and Torch-Pruning.

    python examples/smollm2/prepare.py FOLDER          # once: weights and text
    pip install --no-deps torch-pruning==1.6.1         # without it, its rows are skipped
    python benchmarks/prune_llm.py FOLDER [--keep 0.9 0.8 0.7] [--steps 10] [--store STORE]

Perplexity on pages that neither cut nor recovery uses, and the latency of one window in torch, with
the same evaluator, samples and threads for every row. Recovery, the same for all, is `--steps`
steps of 4 windows of 256 tokens with the soft labels of the uncut model. Torch-Pruning cuts hidden
and inner widths by the norm of their groups, as its own example for LLMs does.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

HEADS, HEAD_WIDTH = 9, 64
ROUND_TO = 72
"""Llama's class requires that 9 heads divide the hidden width; kernels prefer a multiple of 8."""
OURS: dict[str, dict[str, Any]] = {
    "layers": {"axes": ["layers"]},
    "inner widths": {"axes": ["ffn"]},
    "hidden and inner widths": {"axes": ["ffn", "hidden"]},
    "hidden and inner widths, no repair": {"axes": ["ffn", "hidden"], "repair": False},
}
PEER = "Torch-Pruning"


def pipeline(folder: Path, model: Path, passes: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a pipeline that measures its source and every step in the same way."""
    text = {"source": "text", "tokenizer": str(folder / "model")}
    return {
        "version": 1,
        "name": "prune-llm",
        "threads": 2,
        "model": {"path": str(model)},
        "data": {
            "calibration": {
                **text,
                "path": str(folder / "text/calibration/*.txt"),
                "sequence_length": 256,
            },
            "evaluation": {
                **text,
                "path": str(folder / "text/evaluation/*.txt"),
                "sequence_length": 512,
                "num_samples": 12,
            },
        },
        "evaluate": {
            "accuracy": {"data": "evaluation", "metrics": ["perplexity"], "batch_size": 2},
            "latency": {"batch_size": 1, "warmup": 2, "repeats": 10, "threads": 2},
        },
        "passes": passes,
    }


def recovery_step(name: str, after: str, teacher: str, steps: int) -> dict[str, Any]:
    """Return a short distillation from the teacher."""
    return {
        "type": "distill",
        "name": name,
        "from": after,
        "student": {"parent": True},
        "teacher": teacher,
        "train": "calibration",
        "validation": None,
        "soft_weight": 0.9,
        "temperature": {"start": 1.0, "end": 1.0},
        "training": {
            "steps": steps,
            "batch_size": 4,
            "learning_rate": 0.0002,
            "weight_decay": 0.0,
            "warmup_ratio": 0.2,
        },
    }


def run(tree: dict[str, Any], store: Path) -> list[dict[str, Any]]:
    """Run a pipeline and return the rows of its ladder, the source's first."""
    file = store / "pipelines" / f"{Path(tree['model']['path']).name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(tree, indent=1), encoding="utf-8")
    command = [sys.executable, "-m", "cli", "run", str(file), "-o", str(store), "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    rows: list[dict[str, Any]] = json.loads(done.stdout)["ladder"]["rows"]
    return rows


def cut_by_peer(model: Path, keep: float, out: Path) -> None:
    """Cut hidden and inner widths with Torch-Pruning, to at most ``keep`` of the MACs."""
    import torch
    import torch_pruning
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(model)
    module.config.use_cache = False
    attention = 2 * HEADS * HEAD_WIDTH + 2 * module.config.num_key_value_heads * HEAD_WIDTH
    layers, vocabulary = module.config.num_hidden_layers, module.config.vocab_size

    def macs(hidden: int, ffn: int) -> int:
        return layers * hidden * (attention + 3 * ffn) + vocabulary * hidden

    hidden, ffn = module.config.hidden_size, module.config.intermediate_size

    def rounded(width: int, ratio: float) -> int:
        return width - math.ceil(width * ratio / ROUND_TO) * ROUND_TO

    parent_macs = macs(hidden, ffn)
    ratio = next(
        r / 1000
        for r in range(1, 900)
        if macs(rounded(hidden, r / 1000), rounded(ffn, r / 1000)) <= keep * parent_macs
    )
    projections = [
        part
        for layer in module.model.layers
        for part in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
    ]
    pruner = torch_pruning.pruner.BasePruner(
        module,
        example_inputs=torch.arange(8)[None],
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2, group_reduction="mean"),
        pruning_ratio=ratio,
        ignored_layers=[module.lm_head, *projections],
        round_to=ROUND_TO,
        output_transform=lambda output: output.logits,
        root_module_types=[torch.nn.Linear],
    )
    pruner.step()
    module.config.hidden_size = module.lm_head.in_features
    module.config.intermediate_size = module.model.layers[0].mlp.gate_proj.out_features
    module.config.use_cache = True
    module.save_pretrained(out)
    for file in model.iterdir():
        if not (out / file.name).exists():
            shutil.copy(file, out)


def parse_options() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--keep", type=float, nargs="+", default=[0.9, 0.8, 0.7])
    parser.add_argument("--steps", type=int, default=10, help="steps of recovery; 0 for none")
    parser.add_argument("--rows", nargs="+", default=[*OURS, PEER], choices=[*OURS, PEER])
    parser.add_argument("--store", type=Path, default=Path("artifacts/benchmark-prune-llm"))
    return parser.parse_args()


def prune_steps(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a prune step for each cut and row, each with its recovery."""
    steps: list[dict[str, Any]] = []
    for keep in options.keep:
        for row in (row for row in OURS if row in options.rows):
            name = f"{row.replace(',', '').replace(' ', '-')}-{100 * keep:g}"
            target = {"macs": f"{100 * keep:g}%"}
            fields = {"calibration": "calibration", "num_samples": 32, "batch_size": 4, **OURS[row]}
            steps.append(
                {"type": "prune", "name": name, "from": "source", "target": target, **fields}
            )
            if options.steps:
                steps.append(recovery_step(f"{name}-recovered", name, "source", options.steps))
    return steps


def run_peer(options: argparse.Namespace, folder: Path, source: str) -> list[dict[str, Any]]:
    """Cut with Torch-Pruning and recover; return the rows of all ladders."""
    store: Path = options.store.resolve()
    rows: list[dict[str, Any]] = []
    for keep in options.keep:
        out = store / "peer" / f"torch-pruning-{100 * keep:g}"
        if not out.exists():
            cut_by_peer(folder / "model", keep, out)
        steps = []
        if options.steps:
            steps = [recovery_step(f"{out.name}-recovered", "source", source, options.steps)]
        rows += [
            row | {"step": row["step"].replace("source", out.name)}
            for row in run(pipeline(folder, out, steps), store)
        ]
    return rows


def main() -> None:
    """Run all cuts and print the table."""
    options = parse_options()
    folder, store = options.folder.resolve(), options.store.resolve()
    rows = run(pipeline(folder, folder / "model", prune_steps(options)), store)
    if PEER in options.rows and importlib.util.find_spec("torch_pruning") is not None:
        rows += run_peer(options, folder, str(store / rows[0]["name"]))
    uncut = rows[0]["metrics"]
    print(f"{'':48}{'MACs':>8}{'perplexity':>12}{'latency':>10}")
    for row in rows:
        values = {name: metric["value"] for name, metric in row["metrics"].items()}
        macs = values["macs"] / uncut["macs"]["value"]
        latency = values["latency_p50_ms"] / uncut["latency_p50_ms"]["value"]
        print(f"{row['step']:48}{macs:>8.3f}{values['perplexity']:>12.2f}{latency:>9.2f}x")


if __name__ == "__main__":
    main()
