"""Load packed checkpoints in vLLM on a CPU, generate, and compare every token with torch.

    python -m tests.consumers.check_vllm --vllm-python VENV/bin/python [MODEL …]

Packs small random models in both formats (a Llama, and a glm4v with tower and head), and takes the
packed checkpoints MODEL beside them. Each is checked with the rules of ``lint``, loaded by vLLM in
its own environment (``make test-vllm`` sets one up), and continues two prompts greedily. A token
passes if torch, on the same integers and the same tokens before it, gives it the largest logit or
one less by at most ``TOLERANCE`` of the spread of the logits: float16 and float32 differ by that.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from compressor.analysis.consumer_lint import lint_checkpoint
from compressor.models.checkpoint.description import read_description
from compressor.models.checkpoint.loading import load_module
from compressor.models.consumers.targets import VllmServer
from compressor.models.families.transformers.config import CheckpointConfig
from tests.support.awq import CHECKPOINTS, NEAREST, artifact, run_awq
from tests.support.processors import TREE, write_processor

TOLERANCE = 0.05
MAX_TOKENS = 32
SECONDS = 600
WORKER = Path(__file__).with_name("vllm_worker.py")
SERVE = {"serve_with": {"vllm": {"gpu": "cpu"}}, "group_size": 32}
CALIBRATION = {"calibration": {"data": "text", "num_samples": 4, "batch_size": 4}}
FORMATS: dict[str, dict[str, Any]] = {
    "awq": {"format": "awq"},
    "compressed-tensors": {"format": "compressed-tensors"},
}
PARTS = {"vision": {"bits": 4, "group_size": 32}, "lm_head": {"bits": 4, "group_size": 64}}
SIZES = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
"""Sizes that the kernels of CPUs take: multiples of 32, in groups of 32."""
LLAMA = {"model_type": "llama", "architectures": ("LlamaForCausalLM",), **SIZES}
_VISION = {**TREE["vision_config"], "hidden_size": 128, "num_heads": 4, "intermediate_size": 512}
_ROTARY = {
    "rope_type": "default",
    "rope_theta": 10_000.0,
    "partial_rotary_factor": 0.5,
    "mrope_section": [4, 6, 6],
}
GLM4V = {
    **TREE,
    "text_config": {**TREE["text_config"], **SIZES, "rope_parameters": _ROTARY},
    "vision_config": {**_VISION, "out_hidden_size": 256},
}


def pack(folder: Path) -> dict[str, Path]:
    """Pack the small models in every format that vLLM loads; their folders by name."""
    folders = {}
    for name, tree in (("llama", LLAMA), ("glm4v", GLM4V)):
        torch.manual_seed(0)
        config = CheckpointConfig.model_validate(tree)
        if name == "glm4v":
            write_processor(folder / name)
        CHECKPOINTS.save(CHECKPOINTS.build(config), config, folder / name)
        for method, fields in FORMATS.items():
            parts = PARTS if (name, method) == ("glm4v", "compressed-tensors") else {}
            target = folder / f"{name}-{method}"
            step = {**NEAREST, **SERVE, **CALIBRATION, **fields, **parts}
            folders[target.name] = run_awq(artifact(folder / name), target, step)[0]
    return folders


def generate(python: Path, model: Path, prompts: list[list[int]]) -> dict[str, Any]:
    """Return the answer of vLLM in a process of its environment."""
    request = {"prompts": prompts, "images": [None] * len(prompts), "max_tokens": MAX_TOKENS}
    done = subprocess.run(
        [str(python), str(WORKER), str(model)],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        env={**os.environ, "PYTHONPATH": str(WORKER.with_name("site"))},
    )
    if done.returncode:
        raise SystemExit(f"vLLM does not load {model}:\n{done.stderr[-3000:]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@torch.no_grad()
def gaps(model: Path, prompts: list[list[int]], answers: list[list[int]]) -> list[float]:
    """Return how far below torch's largest logit each generated token is, in spreads of logits."""
    module = load_module(read_description(model)).eval().float()
    found = []
    for prompt, answer in zip(prompts, answers, strict=True):
        tokens = torch.tensor([prompt + answer])
        logits_TV = module(input_ids=tokens).logits[0, len(prompt) - 1 : -1].float()
        chosen_T = logits_TV.gather(1, torch.tensor(answer)[:, None])[:, 0]
        found += ((logits_TV.max(-1).values - chosen_T) / logits_TV.std(-1)).tolist()
    return found


def check(name: str, model: Path, python: Path) -> bool:
    """Print and return whether vLLM generates what torch does."""
    if not (checked := lint_checkpoint(model, "vllm", VllmServer(gpu="cpu"))).loads:
        print(f"{name}: refused by lint: {checked.problems or checked.refused[:1]}")
        return False
    prompts = [[5, 17, 42, 99, 7], [301, 4, 250, 33, 71, 8, 123, 9]]
    started = time.monotonic()
    answer = generate(python, model, prompts)
    below = gaps(model, prompts, answer["tokens"])
    best, worst = sum(gap == 0 for gap in below), max(below)
    passed = worst <= TOLERANCE
    how = "unpacked: no kernel for this processor" if answer["unpacked"] else "packed"
    print(
        f"{name}: {best} of {len(below)} tokens are torch's first choice, the worst is "
        f"{worst:.4f} spreads below it; {how}; {time.monotonic() - started:.0f} s; "
        f"{'ok' if passed else 'FAILED'}",
        flush=True,
    )
    return passed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vllm-python", type=Path, required=True)
    parser.add_argument("models", nargs="*", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = {**pack(Path(folder)), **{str(path): path for path in options.models}}
        results = [check(name, path, options.vllm_python) for name, path in models.items()]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
