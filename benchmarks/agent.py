"""Measure a phone agent's requests to `serve`: a screen new and known, and a loop of ten steps.

    python -m benchmarks.agent make FOLDER --tokenizer examples/smollm2/fetched/model
    autoglm-compress run FOLDER/pipeline.yaml --output-dir FOLDER/artifacts
    python -m benchmarks.agent measure FOLDER/artifacts/export-onnx-ID \\
        [--screen 540 1200] [--steps 10]

``make`` writes a glm4v with random weights: vision tower and attention heads of AutoGLM-Phone-9B
(24 layers of width 1,536; 32 heads on 2, width 4,096), but two decoder layers and the vocabulary of
another tokenizer. ``measure`` starts a server and prints, as medians and ranges, the time to the
first token of

- a new screen, the same one in another conversation, and the same question again;
- the steps of an agent as Open-AutoGLM sends them (system prompt, earlier texts and answers, the
  newest screen alone), with the keys and values of the step before, and without: there, each system
  prompt begins with another word.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import statistics
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from benchmarks import serve

PIPELINE = """version: 1
name: agent
model: {path: model}
data:
  test: {source: image-text, path: conversations/test.jsonl, processor: model, num_samples: 2}
passes:
  - {type: export-onnx, name: onnx, parity: {data: test, num_samples: 2}}
"""
SYSTEM = "You operate a phone. " + "Look at the screen and choose the next action. " * 60
"""About as many tokens as the agent's own prompt."""


def make(folder: Path, tokenizer: Path) -> None:
    """Write the model, conversations for the parity check, and the pipeline."""
    import torch

    sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "glm4v"))
    import prepare

    from compressor.models.families.transformers.config import CheckpointConfig
    from compressor.models.families.transformers.family import Transformers

    ids = prepare.write_processor(folder / "model", tokenizer)
    tree = prepare.small_config(*ids)
    tree["text_config"] |= {
        "hidden_size": 4096,
        "intermediate_size": 13_696,
        "num_hidden_layers": 2,
        "num_attention_heads": 32,
        "max_position_embeddings": 8192,
    }
    tree["text_config"]["rope_parameters"]["mrope_section"] = [8, 12, 12]
    tree["vision_config"] |= {
        "depth": 24,
        "hidden_size": 1536,
        "num_heads": 12,
        "out_hidden_size": 4096,
        "intermediate_size": 13_696,
    }
    config: Any = CheckpointConfig.model_validate(tree)
    torch.manual_seed(0)
    family = Transformers()
    family.save(family.build(config), config, folder / "model")
    prepare.write_conversations(folder / "conversations", "test", "test", 2)
    (folder / "pipeline.yaml").write_text(PIPELINE, encoding="utf-8")


def screen(size: tuple[int, int], seed: int) -> dict[str, Any]:
    """Return a message part with a screen of coloured tiles, which no other seed gives."""
    tiles = np.random.default_rng(seed).integers(0, 256, (size[1] // 40, size[0] // 40, 3))
    image = Image.fromarray(tiles.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    file = io.BytesIO()
    image.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def question(picture: dict[str, Any], text: str) -> dict[str, Any]:
    return {"role": "user", "content": [picture, {"type": "text", "text": text}]}


async def measure(
    server: serve.Server, size: tuple[int, int], options: argparse.Namespace
) -> dict[str, Any]:
    """Return times to the first token in ms, by what was asked."""
    await server.wait()
    figures: dict[str, list[float]] = {}
    async with httpx.AsyncClient() as client:

        async def ask(name: str, messages: list[dict[str, Any]]) -> str:
            answer = await server.ask(client, messages)
            figures.setdefault(name, []).append(answer.first_ms)
            return answer.text

        for number in range(options.rounds):
            picture = screen(size, number)
            first = [question(picture, f"Question {number}")]
            await ask("new screen", first)
            elsewhere = {"role": "system", "content": f"Conversation {number}"}
            await ask("same screen, other conversation", [elsewhere, *first])
            await ask("same again", first)
            for name in ("step of an agent", "step of an agent, new prefix"):
                messages = [{"role": "system", "content": f"{name} {number}. {SYSTEM}"}]
                for step in range(options.steps):
                    if name.endswith("new prefix"):
                        start = f"{step} {number}"
                        messages[0] = {"role": "system", "content": f"{start} {SYSTEM}"}
                    shown = screen(size, 1000 * (number + 1) + step + 100 * len(name))
                    text = f"task, step {step}"
                    answer = await ask(name, [*messages, question(shown, text)])
                    messages.append({"role": "user", "content": [{"type": "text", "text": text}]})
                    messages.append({"role": "assistant", "content": answer})
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make")
    making.add_argument("folder", type=Path)
    making.add_argument("--tokenizer", type=Path, required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("artifact")
    measuring.add_argument("--screen", type=int, nargs=2, default=(540, 1200))
    measuring.add_argument("--steps", type=int, default=10)
    measuring.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    if options.command == "make":
        make(options.folder, options.tokenizer)
        return
    server = serve.Server(f"ours=autoglm-compress:{options.artifact}", 18090, context=8192)
    try:
        width, height = options.screen
        figures = asyncio.run(measure(server, (width, height), options))
    finally:
        server.process.terminate()
    for name, values in figures.items():
        print(f"{name}: first token after {serve.described(values)} ms")
    steps = [figures[name] for name in figures if name.startswith("step")]
    share = statistics.mean(steps[0]) / statistics.mean(steps[1])
    print(f"first tokens of steps with kept keys and values: ×{share:.2f} of the time")


if __name__ == "__main__":
    main()
