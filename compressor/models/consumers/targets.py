"""Servers that load packed checkpoints, as configs and command lines name them; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationError

from compressor.config.record import Record
from compressor.errors import UsageError

Gpu = Literal["cpu", "sm75", "sm80", "sm86", "sm89", "sm90", "sm100", "sm120"]
"""Compute capability of an NVIDIA GPU, or ``cpu``."""
GPUS: tuple[str, ...] = get_args(Gpu)


class VllmServer(Record):
    """One instance of vLLM. Rules are those of vLLM 0.32."""

    tp: Annotated[int, Field(ge=1, le=64)] = 1
    """Number of GPUs that hold a part of each layer (`--tensor-parallel-size`)."""
    gpu: Gpu = "sm89"
    """Compute capability of the GPUs, or `cpu`: sm80 (A100), sm86 (RTX 3090, A10), sm89 (RTX 4090,
    L40), sm90 (H100)."""
    mm_encoder_tp_mode: Literal["weights", "data"] = "weights"
    """vLLM's option of this name. `data`: each GPU holds the whole vision tower."""

    @property
    def capability(self) -> int | None:
        """Compute capability as a number, such as 89; None for a CPU."""
        return None if self.gpu == "cpu" else int(self.gpu.removeprefix("sm"))


class Consumers(Record):
    """Consumers that have to load the packed checkpoint."""

    vllm: VllmServer | None = None
    """vLLM, for example `{tp: 2, gpu: sm89}`."""
    transformers: bool = False
    """`from_pretrained` of transformers, with the package compressed-tensors (`format:
    compressed-tensors`) or gptqmodel (`format: awq`)."""


def parse_server(options: Mapping[str, Any]) -> VllmServer:
    """Return the server that options of a command line describe.

    Raises:
        UsageError: a value is not one of those that an option takes.
    """
    try:
        return VllmServer.model_validate(options)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        choices = {"gpu": GPUS, "mm_encoder_tp_mode": ("weights", "data")}.get(name, ("1 to 64",))
        raise UsageError(
            f"--{name.replace('_', '-')} {options[name]}: no such value",
            remedy=f"expected one of {', '.join(choices)}",
        ) from error
