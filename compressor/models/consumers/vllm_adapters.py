"""Rules by which vLLM 0.32 loads LoRA adapters in PEFT's layout; no torch.

vLLM takes the folder as it is. It reads rank, alpha and rsLoRA from the config, and no other field
that changes the factors; it looks up modules by the last part of their names, and compares no base.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from compressor.errors import ModelError
from compressor.models.adapters.base import BASE, find_base
from compressor.models.adapters.factors import Factors, read_factors
from compressor.models.consumers.findings import Checked
from compressor.models.consumers.kernels import VLLM_VERSION
from compressor.models.consumers.roles import Split, is_expert, is_in_tower, split_of

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that `--max-lora-rank` takes."""
_LISTED = 4
"""Names that a message lists."""


def check_vllm_adapter(adapter: Path) -> Checked:
    """Return what vLLM does with an adapter, and the options with which it serves it.

    Args:
        adapter: a folder in PEFT's layout.

    Raises:
        ModelError: ``base.json`` names a base that is not found, or is another model by now.
    """
    base = find_base(adapter) if (adapter / BASE).is_file() else None
    consumer = f"vLLM {VLLM_VERSION}"
    try:
        factors = read_factors(adapter)
    except ModelError as error:  # whatever is no plain LoRA, vLLM refuses or reads as one
        return Checked(consumer, (error.what,))
    rank = max(factor.a_IR.shape[1] for factor in factors.values())
    return Checked(
        consumer,
        tuple(_problems(factors, rank)),
        (*_serving(adapter, base, rank), *_unknown_modules(factors)),
    )


def _problems(factors: dict[str, Factors], rank: int) -> Iterator[str]:
    if rank > _RANKS[-1]:
        yield f"rank {rank}: `--max-lora-rank` takes {_RANKS[-1]} at most"
    if towers := [name for name in factors if is_in_tower(name)]:
        yield (
            f"{len(towers)} modules of the vision tower, which vLLM ignores with no more than a "
            f"warning unless started with --enable-tower-connector-lora: {_some(towers)}"
        )


def _serving(adapter: Path, base: Path | None, rank: int) -> Iterator[str]:
    """Yield how to serve the adapter."""
    least = next((limit for limit in _RANKS if limit >= rank), None)
    if least is not None:
        model = "BASE" if base is None else str(base)
        yield (
            f"vllm serve {model} --enable-lora --max-lora-rank {least} "
            f"--lora-modules NAME={adapter}"
        )
    if base is None:
        yield f"without {BASE} the base is not compared, and vLLM does not compare it either"


def _unknown_modules(factors: dict[str, Factors]) -> Iterator[str]:
    unknown = [name for name in factors if is_expert(name) or split_of(name) is Split.UNKNOWN]
    if unknown:
        yield (
            f"{len(unknown)} modules are not known to take adapters in vLLM, which refuses an "
            f"adapter for modules that it does not have: {_some(unknown)}"
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_LISTED]) + (", …" if names[_LISTED:] else "")
