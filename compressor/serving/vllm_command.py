"""The command with which vLLM serves a checkpoint."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from compressor.errors import UsageError
from compressor.models.attention_patterns.record import ATTENTION_PATTERN
from compressor.runtimes.formats import StoredModel

_LOADED_BY_VLLM = frozenset({"torch", "packed"})


def vllm_command(
    model: StoredModel, names: Sequence[str], host: str, port: int, context: int | None
) -> str:
    """Return the command that serves a checkpoint of transformers with vLLM.

    Raises:
        UsageError: vLLM loads no models of this format, or the model generates no text.
    """
    if model.format.name not in _LOADED_BY_VLLM:
        raise UsageError(
            f"{model.path} is of the format {model.format.name!r}, which vLLM does not load",
            remedy="name the torch checkpoint, or the artifact of `awq`",
        )
    if model.format.facts(model.path).attention_pattern:
        raise UsageError(
            f"{model.path} has an {ATTENTION_PATTERN}, which vLLM ignores: all heads would attend "
            "to all tokens",
            remedy="serve it without `--print-vllm`, or serve the model before `sparse-attention`",
        )
    limits = model.format.prompt_limits(model.path)
    arguments = ["vllm", "serve", str(model.path), "--host", host, "--port", str(port)]
    arguments += ["--served-model-name", *names]
    arguments += [
        "--max-model-len",
        str(min(context or limits.context_length, limits.context_length)),
    ]
    if limits.takes_images:
        arguments += ["--limit-mm-per-prompt", '{"image": 10}']
    return shlex.join(arguments)
