"""Perplexity, KL and speed of a packed checkpoint in vLLM, with the samples of a pipeline.

    make .venv-vllm/.installed
    python -m benchmarks.vllm PIPELINE ARTIFACT --source SOURCE --vllm-python .venv-vllm/bin/python

The metrics are those of the pipeline's ``evaluate.accuracy``, computed by the code of the ladder
from vLLM's logits, and KL is against SOURCE, the artifact of the pipeline's model. vLLM runs on the
CPU, in an environment of its own (``make test-vllm``); its worker is that of ``tests.consumers``.
Speed is that of a prompt of 256 tokens and 32 more, after one answer that is not timed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from compressor.artifacts.artifact import open_artifact
from compressor.artifacts.files import size_bytes
from compressor.config.discovery import SOURCES, load
from compressor.data.contract import Batch, SourceContext
from compressor.engine.plan.pipeline import load_pipeline
from compressor.evaluation.accuracy import measure_accuracy
from compressor.models.capabilities.signature import InputSpec
from compressor.runtimes.formats import open_session, recognize
from compressor.runtimes.session import Session

WORKER = Path(__file__).parents[1] / "tests" / "consumers" / "vllm_worker.py"
PROMPT, ANSWER, CONTEXT = 256, 32, 1024


class VllmSession(Session):
    """A packed checkpoint in vLLM's environment; every call loads the model once."""

    runtime = "vLLM"
    output_names = ("logits",)

    def __init__(self, python: Path, folder: Path, vocabulary: int, threads: int) -> None:
        """Remember the model.

        Args:
            python: of vLLM's environment.
            folder: the checkpoint.
            vocabulary: number of logits.
            threads: of vLLM.
        """
        self._python, self._folder, self._threads = python, folder, threads
        self.inputs = (InputSpec("input_ids", "int64", ("batch", "sequence"), below=vocabulary),)

    def ask(self, prompts: list[list[int]], **fields: Any) -> dict[str, Any]:
        """Return the worker's answer."""
        request = {"prompts": prompts, "images": [None] * len(prompts), **fields}
        request["max_model_len"] = CONTEXT
        environment = {**os.environ, "OMP_NUM_THREADS": str(self._threads)}
        environment["PYTHONPATH"] = str(WORKER.with_name("site"))
        done = subprocess.run(
            [str(self._python), str(WORKER), str(self._folder)],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        if done.returncode:
            raise SystemExit(f"vLLM fails on {self._folder}:\n{done.stderr[-3000:]}")
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def compute(self, feeds: Batch) -> Batch:
        """Return the logits after each token."""
        with tempfile.TemporaryDirectory() as folder:
            self.ask(feeds["input_ids"].tolist(), max_tokens=1, logits=folder)
            files = [Path(folder) / f"{row}.npy" for row in range(len(feeds["input_ids"]))]
            return {"logits": np.stack([np.load(file) for file in files])}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pipeline", type=Path)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--vllm-python", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    config = load_pipeline(options.pipeline).config
    accuracy = config.evaluate.accuracy
    if accuracy is None:
        raise SystemExit(f"{options.pipeline} has no `evaluate.accuracy`")
    fields = config.data[accuracy.data]
    source: Any = load(SOURCES, fields["source"])
    dataset = source.load(
        source.Config.model_validate_json(json.dumps(fields)),
        SourceContext(options.pipeline.parent.resolve()),
    )
    # One call for all samples: every call loads the model.
    accuracy = accuracy.model_copy(update={"batch_size": accuracy.sample_count(len(dataset))})
    folder = open_artifact(options.artifact).model
    original = recognize(open_artifact(options.source).model)
    vocabulary = int(json.loads((folder / "config.json").read_bytes())["vocab_size"])
    session = VllmSession(options.vllm_python, folder, vocabulary, options.threads)
    with open_session(original.format.name, original.path, threads=options.threads) as reference:
        report = measure_accuracy(session, dataset, accuracy, lambda *_: None, reference)
    for metric in report.metrics:
        print(f"{metric.name} {metric.value:.4g} ({metric.low:.4g} to {metric.high:.4g})")
    tokens = dataset.batch(np.arange(1))["input_ids"][0, :PROMPT].tolist()
    timed = session.ask([tokens], max_tokens=ANSWER, timed=True)
    rate = (ANSWER - 1) / (timed["seconds"] - timed["first_token_seconds"])
    print(f"first token {1e3 * timed['first_token_seconds']:.0f} ms, {rate:.1f} tokens/s")
    print(f"{size_bytes(folder) / 1e6:.0f} MB; packed: {not timed['unpacked']}")
    print("load average", " ".join(f"{load:.1f}" for load in os.getloadavg()))


if __name__ == "__main__":
    main()
