"""One engine in a process of its own, for ``decode.py``: it reads a JSON command a line, and answers with one.

    python benchmarks/decode_worker.py ours|ours-fast-prompts|torch|genai|llama.cpp|mnn PATH THREADS
    python benchmarks/decode_worker.py requantize FROM.gguf TO.gguf          (llama.cpp: to Q4_0)

It runs in the interpreter that has the engine; only ``ours`` and ``torch`` need this repository.
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
    def __init__(self, path: str, threads: int, fast_prompts: bool = False) -> None:
        from compressor.runtimes.onnxruntime.decoder.decoder import OnnxDecoder

        self.decoder = OnnxDecoder(
            Path(path), threads, capacity=1024, huge_pages=True, fast_prompts=fast_prompts
        )
        self.start = self.decoder.reset

    def feed(self, ids: list[int]) -> int:
        return int(self.decoder.forward(np.array([ids]))[0, -1].argmax())

    def scores(self, ids: list[int]) -> Array:
        self.start()
        return self.decoder.forward(np.array([ids]), logits_to_keep=0)[0]


class Torch:
    def __init__(self, path: str, threads: int) -> None:
        import torch

        from compressor.models.checkpoint.loading import load_module

        torch.set_num_threads(threads)
        self.torch, self.module = torch, load_module(Path(path))

    def start(self) -> None:
        from transformers import DynamicCache

        self.cache = DynamicCache()

    def feed(self, ids: list[int]) -> int:
        with self.torch.inference_mode():
            given = {"past_key_values": self.cache, "use_cache": True, "logits_to_keep": 1}
            return int(
                self.module(input_ids=self.torch.tensor([ids]), **given)["logits"][0, -1].argmax()
            )

    def scores(self, ids: list[int]) -> Array:
        with self.torch.inference_mode():
            return self.module(input_ids=self.torch.tensor([ids]))["logits"][0].float().numpy()


class Genai:
    def __init__(self, path: str, threads: int) -> None:
        import onnxruntime_genai as og

        config = og.Config(path)
        config.overlay(
            json.dumps(
                {"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}
            )
        )
        self.og, self.model = og, og.Model(config)

    def start(self) -> None:
        parameters = self.og.GeneratorParams(self.model)
        parameters.set_search_options(max_length=1024, do_sample=False)
        self.generator = self.og.Generator(self.model, parameters)

    def feed(self, ids: list[int]) -> int:
        self.generator.append_tokens(np.array(ids, dtype=np.int32))
        return int(self.generator.get_logits()[0, -1].argmax())

    def scores(self, ids: list[int]) -> Array:
        self.start()
        self.generator.append_tokens(np.array(ids, dtype=np.int32))
        return self.generator.get_output("logits")[0]


class LlamaCpp:
    def __init__(self, path: str, threads: int) -> None:
        from llama_cpp import Llama

        given = {
            "n_ctx": 1024,
            "n_threads": threads,
            "n_threads_batch": threads,
            "verbose": False,
            "n_batch": 512,
        }
        self.model, self.path, self.given = Llama(path, **given), path, given
        self.start = self.model.reset

    def feed(self, ids: list[int]) -> int:
        import llama_cpp

        self.model.eval(ids)
        row = llama_cpp.llama_get_logits_ith(self.model.ctx, -1)
        return int(np.ctypeslib.as_array(row, shape=(self.model.n_vocab(),)).argmax())

    def scores(self, ids: list[int]) -> Array:
        from llama_cpp import Llama

        whole = Llama(self.path, logits_all=True, **self.given)
        whole.eval(ids)
        return np.array(whole.scores[: len(ids)])


class Mnn:
    def __init__(self, path: str, threads: int) -> None:
        self.path, self.given = path, {"thread_num": threads}
        self.model, self.whole = self._opened(), None

    def _opened(self, **more: Any) -> Any:
        from MNN import llm

        model = llm.create(
            str(Path(self.path) / "config.json")
        )  # with the arithmetic that its exporter chose
        model.set_config(json.dumps(self.given | more))
        model.load()
        return model

    def start(self) -> None:
        self.model.reset()
        self.model.generate_init()

    def feed(self, ids: list[int]) -> int:
        return int(np.asarray(self.model.forward(ids).read()).reshape(-1).argmax())

    def scores(self, ids: list[int]) -> Array:
        self.whole = self.whole or self._opened(
            all_logits=True
        )  # never closed: MNN 3.6 does not survive that
        self.whole.reset()
        self.whole.generate_init()
        return np.array(self.whole.forward(ids).read())[0]


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
        sys.exit("llama.cpp does not quantize it")


def peak_memory() -> int:
    """Bytes; what the process that started this one had does not count."""
    [line] = [
        one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM")
    ]
    return 1024 * int(line.split()[1])


def main() -> None:
    if sys.argv[1] == "requantize":
        requantize(*sys.argv[2:])
        return
    kind, path, threads = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an engine prints is no answer

    def answer(told: dict[str, Any]) -> None:
        print(json.dumps(told), file=answers, flush=True)

    begun = time.perf_counter()
    engine = ENGINES[kind](path, int(threads))
    answer({"opened": time.perf_counter() - begun})
    for line in sys.stdin:
        command = json.loads(line)
        ids = command["ids"]
        if "scores" in command:
            np.save(command["scores"], np.asarray(engine.scores(ids), dtype=np.float32))
            answer({})
            continue
        engine.start()
        begun = time.perf_counter()
        word = engine.feed(ids)
        first = time.perf_counter()
        for _ in range(command["new"]):
            word = engine.feed([word])
        ended = time.perf_counter()
        told = {
            "prefill": len(ids) / (first - begun),
            "decode": command["new"] / (ended - first),
            "peak": peak_memory(),
        }
        answer(told)


if __name__ == "__main__":
    main()
