"""The table of vLLM's kernels, held against vLLM's own ``can_implement`` where it is installed."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from compressor.models.consumers.kernels import KERNELS, VLLM_VERSION, Partition, choose_kernel
from compressor.models.consumers.targets import VllmServer
from compressor.models.quantized.weight_grid import WeightGrid

GRIDS = [
    WeightGrid(bits=bits, group_size=size, symmetric=symmetric)
    for bits, size, symmetric in product((2, 3, 4, 8), (-1, 16, 32, 64, 128, 256), (True, False))
]
# Inputs, outputs, and the GPUs over which the inputs are split.
SHAPES = [(4096, 4096, 1), (13696, 4096, 2), (1536, 4608, 1), (576, 1536, 2), (96, 72, 1)]


@pytest.mark.parametrize(
    ("gpu", "grid", "kernel"),
    [
        ("sm86", {"bits": 4, "group_size": 32}, "Marlin"),
        ("sm89", {"bits": 8, "group_size": 128, "symmetric": True}, "Marlin"),
        ("sm89", {"bits": 8, "group_size": 128}, None),
        ("sm89", {"bits": 3, "group_size": 128, "symmetric": True}, None),
        ("sm90", {"bits": 4, "group_size": 128}, "Machete"),
        ("sm90", {"bits": 8, "group_size": 64}, "Machete"),
        ("sm90", {"bits": 4, "group_size": 32}, "Marlin"),
        ("sm120", {"bits": 4, "group_size": -1}, "Marlin"),
        ("cpu", {"bits": 4, "group_size": 32}, "CPUWNA16"),
        ("cpu", {"bits": 8, "group_size": 32, "symmetric": True}, None),
    ],
)
def test_each_gpu_has_its_kernels(gpu: str, grid: dict[str, Any], kernel: str | None) -> None:
    server = VllmServer.model_validate({"gpu": gpu})
    part = Partition(4096, 4096, float16=True)
    assert choose_kernel(server, WeightGrid.model_validate(grid), part).kernel == kernel


def _vllm_types() -> dict[tuple[int, bool], Any]:
    from vllm.scalar_type import scalar_types as types

    return {
        (2, False): types.uint2,
        (3, False): types.uint3,
        (4, False): types.uint4,
        (8, False): types.uint8,
        (2, True): types.uint2b2,
        (3, True): types.uint3b4,
        (4, True): types.uint4b8,
        (8, True): types.uint8b128,
    }


@pytest.mark.parametrize("gpu", ["cpu", "sm80", "sm86", "sm89", "sm90"])
def test_the_table_is_that_of_vllm(gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vllm = pytest.importorskip("vllm")
    if not vllm.__version__.startswith(f"{VLLM_VERSION}."):
        pytest.skip(f"the table is that of vLLM {VLLM_VERSION}, and {vllm.__version__} is there")
    import torch
    from vllm.model_executor.kernels import linear
    from vllm.platforms.interface import DeviceCapability, Platform, PlatformEnum

    server = VllmServer.model_validate({"gpu": gpu})
    names = {f"{kernel.name}LinearKernel" for kernel in KERNELS}
    platform = PlatformEnum.CPU if gpu == "cpu" else PlatformEnum.CUDA
    # What every kernel reads of the platform; vLLM takes it for the GPU that is asked about.
    monkeypatch.setattr(Platform, "is_cpu", lambda self: gpu == "cpu")
    monkeypatch.setattr(Platform, "is_cuda", lambda self: gpu != "cpu")
    monkeypatch.setattr(Platform, "is_cuda_alike", lambda self: gpu != "cpu")
    if gpu != "cpu":
        capability = DeviceCapability(*divmod(server.capability or 0, 10))
        current = type(linear.current_platform)
        monkeypatch.setattr(current, "get_device_capability", lambda *_, **__: capability)
    candidates = [
        kernel for kernel in linear._POSSIBLE_KERNELS[platform] if kernel.__name__ in names
    ]
    types = _vllm_types()
    for grid, (inputs, outputs, tp), float16 in product(GRIDS, SHAPES, (True, False)):
        if inputs % grid.width(inputs):
            continue
        part_inputs = inputs // tp
        config = linear.MPLinearLayerConfig(
            full_weight_shape=(inputs, outputs),
            partition_weight_shape=(part_inputs, outputs),
            weight_type=types[grid.bits, grid.symmetric],
            act_type=torch.float16 if float16 else torch.bfloat16,
            group_size=grid.group_size,
            zero_points=not grid.symmetric,
        )
        expected = next(
            (
                kernel.__name__.removesuffix("LinearKernel")
                for kernel in candidates
                if kernel.get_min_capability() <= (server.capability or 0)
                and kernel.can_implement(config)[0]
            ),
            None,
        )
        choice = choose_kernel(server, grid, Partition(part_inputs, outputs, float16=float16))
        assert choice.kernel == expected, (grid, inputs, outputs, tp, choice.reason)
