"""The device of ``--device``, checked before any step."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from compressor.errors import UsageError
from compressor.runtimes.tensorrt.cuda import list_gpus

CPU = "cpu"
_WITHOUT_CUDA = "+cpu"
"""End of the version of a build of torch that runs on CPUs alone."""


def check_device(device: str) -> None:
    """Check that this machine can run on the device; torch is not imported.

    Raises:
        UsageError: the device is a GPU, and there is none, or torch is built without CUDA.
    """
    if device == CPU:
        return
    if not list_gpus():
        raise UsageError(
            f"--device {device}: the CUDA driver shows no GPU on this machine",
            remedy="use --device cpu, or a machine with a GPU",
        )
    try:
        torch = version("torch")
    except PackageNotFoundError:
        return  # what needs torch names it
    if torch.endswith(_WITHOUT_CUDA):
        raise UsageError(
            f"--device {device}: torch {torch} is built without CUDA",
            remedy="use --device cpu, or install a build of torch with CUDA",
        )
