"""Run one engine for ``decode.py``: read JSON commands from stdin and answer each with one line.

    python benchmarks/decode_worker.py ours|ours-fast-prompts|torch|genai|llama.cpp|mnn PATH THREADS
    python benchmarks/decode_worker.py requantize FROM.gguf TO.gguf          (llama.cpp: to Q4_0)

It runs in an interpreter that has the engine installed; only ``ours`` and ``torch`` need this
repository.
"""

from __future__ import annotations

import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

Array = Any


class Ours:
    """An exported ONNX model in ``OnnxDecoder``."""

    def __init__(self, path: str, threads: int, fast_prompts: bool = False) -> None:
        from compressor.runtimes.onnxruntime.decoder.decoder import OnnxDecoder

        self.decoder = OnnxDecoder(
            Path(path), threads, capacity=1024, huge_pages=True, fast_prompts=fast_prompts
        )
        self.reset = self.decoder.reset

    def next_token(self, ids: list[int]) -> int:
        return int(self.decoder.forward(np.array([ids]))[0, -1].argmax())

    def logits(self, ids: list[int]) -> Array:
        self.reset()
        return self.decoder.forward(np.array([ids]), logits_to_keep=0)[0]


class Torch:
    """A checkpoint in torch, float32."""

    def __init__(self, path: str, threads: int) -> None:
        import torch

        from compressor.models.checkpoint.loading import load_module

        torch.set_num_threads(threads)
        self.torch, self.module = torch, load_module(Path(path))

    def reset(self) -> None:
        from transformers import DynamicCache

        self.cache = DynamicCache()

    def next_token(self, ids: list[int]) -> int:
        with self.torch.inference_mode():
            options = {"past_key_values": self.cache, "use_cache": True, "logits_to_keep": 1}
            return int(
                self.module(input_ids=self.torch.tensor([ids]), **options)["logits"][0, -1].argmax()
            )

    def logits(self, ids: list[int]) -> Array:
        with self.torch.inference_mode():
            return self.module(input_ids=self.torch.tensor([ids]))["logits"][0].float().numpy()


class Genai:
    """A folder in onnxruntime-genai."""

    def __init__(self, path: str, threads: int) -> None:
        import onnxruntime_genai as og

        config = og.Config(path)
        config.overlay(
            json.dumps(
                {"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}
            )
        )
        self.og, self.model = og, og.Model(config)

    def reset(self) -> None:
        parameters = self.og.GeneratorParams(self.model)
        parameters.set_search_options(max_length=1024, do_sample=False)
        self.generator = self.og.Generator(self.model, parameters)

    def next_token(self, ids: list[int]) -> int:
        self.generator.append_tokens(np.array(ids, dtype=np.int32))
        return int(self.generator.get_logits()[0, -1].argmax())

    def logits(self, ids: list[int]) -> Array:
        self.reset()
        self.generator.append_tokens(np.array(ids, dtype=np.int32))
        return self.generator.get_output("logits")[0]


class LlamaCpp:
    """A GGUF file in llama.cpp."""

    def __init__(self, path: str, threads: int) -> None:
        from llama_cpp import Llama

        options = {
            "n_ctx": 1024,
            "n_threads": threads,
            "n_threads_batch": threads,
            "verbose": False,
            "n_batch": 512,
        }
        self.model, self.path, self.options = Llama(path, **options), path, options
        self.reset = self.model.reset

    def next_token(self, ids: list[int]) -> int:
        import llama_cpp

        self.model.eval(ids)
        row = llama_cpp.llama_get_logits_ith(self.model.ctx, -1)
        return int(np.ctypeslib.as_array(row, shape=(self.model.n_vocab(),)).argmax())

    def logits(self, ids: list[int]) -> Array:
        from llama_cpp import Llama

        model = Llama(self.path, logits_all=True, **self.options)
        model.eval(ids)
        return np.array(model.scores[: len(ids)])


class Mnn:
    """A folder in MNN."""

    def __init__(self, path: str, threads: int) -> None:
        self.path, self.options = path, {"thread_num": threads}
        self.model, self.logits_model = self._open(), None

    def _open(self, **options: Any) -> Any:
        from MNN import llm

        # config.json holds the arithmetic that the exporter chose.
        model = llm.create(str(Path(self.path) / "config.json"))
        model.set_config(json.dumps(self.options | options))
        model.load()
        return model

    def reset(self) -> None:
        self.model.reset()
        self.model.generate_init()

    def next_token(self, ids: list[int]) -> int:
        return int(np.asarray(self.model.forward(ids).read()).reshape(-1).argmax())

    def logits(self, ids: list[int]) -> Array:
        # The model stays open: MNN 3.6 crashes when it is closed.
        self.logits_model = self.logits_model or self._open(all_logits=True)
        self.logits_model.reset()
        self.logits_model.generate_init()
        return np.array(self.logits_model.forward(ids).read())[0]


ENGINES: dict[str, Any] = {
    "ours": Ours,
    "ours-fast-prompts": partial(Ours, fast_prompts=True),
    "torch": Torch,
    "genai": Genai,
    "llama.cpp": LlamaCpp,
    "mnn": Mnn,
}


def requantize(source: str, target: str) -> None:
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.allow_requantize = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, True
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), parameters):
        sys.exit("llama.cpp could not quantize the file")


def peak_memory() -> int:
    """Return the peak resident memory of this process in bytes."""
    status = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in status if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])


def main() -> None:
    if sys.argv[1] == "requantize":
        requantize(*sys.argv[2:])
        return
    kind, path, threads = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of an engine must not be taken for an answer

    def answer(values: dict[str, Any]) -> None:
        print(json.dumps(values), file=answers, flush=True)

    start = time.perf_counter()
    engine = ENGINES[kind](path, int(threads))
    answer({"opened": time.perf_counter() - start})
    for line in sys.stdin:
        command = json.loads(line)
        ids = command["ids"]
        if "logits" in command:
            np.save(command["logits"], np.asarray(engine.logits(ids), dtype=np.float32))
            answer({})
            continue
        engine.reset()
        start = time.perf_counter()
        token = engine.next_token(ids)
        first = time.perf_counter()
        for _ in range(command["new"]):
            token = engine.next_token([token])
        end = time.perf_counter()
        speeds = {
            "prefill": len(ids) / (first - start),
            "decode": command["new"] / (end - first),
            "peak": peak_memory(),
        }
        answer(speeds)


if __name__ == "__main__":
    main()
