"""Generate greedily with vLLM on a CPU; runs in an environment of its own, without this project.

    python vllm_worker.py MODEL < request.json > answer.json

The request is ``{"prompts": [[token, …], …], "images": [file or null, …], "max_tokens": n}``; the
answer holds the generated ``tokens`` of each prompt, and as ``unpacked`` whether weights were
multiplied unpacked. With ``"logits": folder`` those after each token of prompt n are written to
``n.npy`` there; with ``"timed": true`` the first prompt is answered again, and the answer timed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
}


def _prompt(tokens: list[int], image: str | None) -> dict[str, Any]:
    if image is None:
        return {"prompt_token_ids": tokens}
    from PIL import Image

    picture = Image.open(image).convert("RGB")
    return {"prompt_token_ids": tokens, "multi_modal_data": {"image": picture}}


def _unpack_where_no_kernel() -> bool:
    """Let vLLM multiply with unpacked weights if its build for this processor has no kernel.

    The product for packed weights is built with AVX512 only. What loads, and how layers are named
    and fused, is vLLM's own in either case.
    """
    import torch
    from vllm.model_executor.kernels.linear import CPUWNA16LinearKernel
    from vllm.model_executor.layers.quantization.utils.quant_utils import (
        unpack_quantized_values_into_int32,
    )
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    if hasattr(torch.ops._C, "cpu_gemm_wna16"):
        return False

    def unpack(self: Any, layer: Any) -> None:
        packed, scales, zeros = self._get_weight_params(layer)
        kind = self.config.weight_type
        integers = unpack_quantized_values_into_int32(packed, kind, 0)
        width = integers.shape[0] // scales.shape[0]
        zero: Any = 8
        if self.config.zero_points:
            zero = unpack_quantized_values_into_int32(zeros, kind, 1).repeat_interleave(width, 0)
        weight = (integers - zero) * scales.repeat_interleave(width, 0)
        layer.unpacked = weight.T.contiguous().to(scales.dtype)

    def multiply(self: Any, layer: Any, x: Any, bias: Any = None) -> Any:
        return torch.nn.functional.linear(x, layer.unpacked, bias)

    CPUWNA16LinearKernel._process_gptq_weights_w4a16 = unpack
    CPUWNA16LinearKernel.apply_weights = multiply
    return True


def _write_logits(model: Any, prompts: list[Any], folder: Path) -> None:
    """Write the logits after each token of each prompt, float32."""
    import numpy as np
    from vllm import SamplingParams
    from vllm.model_executor.layers.logits_processor import LogitsProcessor

    computed: list[Any] = []
    forward = LogitsProcessor.forward

    def recorded(self: Any, *args: Any, **fields: Any) -> Any:
        logits = forward(self, *args, **fields)
        computed.append(logits.float().numpy().copy())
        return logits

    LogitsProcessor.forward = recorded
    sampling = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=1)
    for number, prompt in enumerate(prompts):
        computed.clear()
        model.generate([prompt], sampling)
        # The last token's are computed first, for the answer; then those of the tokens before it.
        last, before = computed
        np.save(folder / f"{number}.npy", np.concatenate([before, last]))
    LogitsProcessor.forward = forward


def _seconds(model: Any, prompt: Any, max_tokens: int) -> float:
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    started = time.perf_counter()
    model.generate([prompt], sampling)
    return time.perf_counter() - started


def main() -> None:
    from vllm import LLM, SamplingParams

    request = json.loads(sys.stdin.read())
    answer = os.dup(1)
    os.dup2(2, 1)  # vLLM prints to stdout
    unpacked = _unpack_where_no_kernel()
    folder = Path(sys.argv[1])
    model = LLM(
        model=str(folder),
        enforce_eager=True,
        max_model_len=request.get("max_model_len", 512),
        enable_prefix_caching=False,
        skip_tokenizer_init=not (folder / "tokenizer.json").exists(),
    )
    prompts = [_prompt(*pair) for pair in zip(request["prompts"], request["images"], strict=True)]
    sampling = SamplingParams(temperature=0.0, max_tokens=request["max_tokens"], ignore_eos=True)
    outputs = model.generate(prompts, sampling)
    tokens = [list(output.outputs[0].token_ids) for output in outputs]
    result: dict[str, Any] = {"tokens": tokens, "unpacked": unpacked}
    if "logits" in request:
        _write_logits(model, prompts, Path(request["logits"]))
    if request.get("timed"):
        result["first_token_seconds"] = _seconds(model, prompts[0], 1)
        result["seconds"] = _seconds(model, prompts[0], request["max_tokens"])
    os.write(answer, json.dumps(result).encode())


if __name__ == "__main__":
    main()
