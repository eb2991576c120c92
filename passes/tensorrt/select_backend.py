"""Which backend, and for what: everything that can be refused without looking at a graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compressor.errors import GpuError, MissingExtraError, RequirementError
from compressor.runtimes.tensorrt.backends import Backend, chosen
from compressor.runtimes.tensorrt.cuda import Gpu, gpus

if TYPE_CHECKING:
    from passes.tensorrt.step import TensorRTConfig


def check_backend(config: TensorRTConfig) -> Backend:
    """The backend of a step, which is installed and builds for the targets.

    Raises:
        GpuError: it needs a GPU, as ``targets_of`` says.
        MissingExtraError: it is not installed; a build bundle needs none.
        RequirementError: it does not build for some of the targets, or for so many: all are named.
        UsageError: `auto`, and both are installed.
    """
    backend = chosen(config.backend)
    if backend.targets and not config.targets:
        raise RequirementError(
            f"{backend.distribution} builds for compute capabilities that are named, and `targets` names none",
            remedy=f"say `targets: [sm86]`, or others of {', '.join(backend.targets)}",
        )
    if backend.targets and (
        unknown := [one for one in config.targets if one not in backend.targets]
    ):
        raise RequirementError(
            f"{backend.distribution} does not build for {', '.join(unknown)}",
            remedy=f"it builds for {', '.join(backend.targets)}; for others use `backend: trt` on a machine with such a GPU",
        )
    if not backend.targets and len(config.targets) > 1:
        raise RequirementError(
            f"{backend.distribution} builds for the GPU at hand alone, and `targets` names {', '.join(config.targets)}",
            remedy="leave `targets` out, or name the one",
        )
    if targets_of(config, backend, gpus()) and not backend.installed:
        raise MissingExtraError(backend.distribution, f"`backend: {backend.name}`", backend.extra)
    return backend


def targets_of(config: TensorRTConfig, backend: Backend, found: tuple[Gpu, ...]) -> tuple[str, ...]:
    """What engines are built for, on this machine; none where a build bundle is to be written instead.

    Args:
        config: of the step.
        backend: the one that it chose.
        found: the GPUs of this machine.

    Raises:
        GpuError: enterprise TensorRT, and there is no GPU here, or another than the one named.
    """
    if backend.targets:
        return config.targets
    wanted = config.targets[0] if config.targets else None
    if found and wanted in {None, found[0].target}:
        return (found[0].target,)
    if config.on_missing_gpu == "bundle":
        return ()
    here = (
        f"the GPU here ({found[0].name}) is {found[0].target}" if found else "there is no GPU here"
    )
    raise GpuError(
        f"{backend.distribution} builds on the GPU that an engine is for ({wanted or 'any'}), and {here}",
        remedy="build it where that GPU is; say `on_missing_gpu: bundle` for all that is needed there; or `backend: rtx`, which "
        "builds without one",
    )


def targets_here(config: TensorRTConfig) -> tuple[str, ...]:
    """``targets_of`` this machine, of the step's own backend, which is checked first."""
    return targets_of(config, check_backend(config), gpus())
