"""Choice of the TensorRT library and of the GPUs to build for, and the errors before any work."""

from __future__ import annotations

from collections.abc import Sequence

from compressor.errors import GpuError, MissingExtraError, RequirementError
from compressor.runtimes.tensorrt.backends import Backend, resolve_backend
from compressor.runtimes.tensorrt.cuda import Gpu, list_gpus
from passes.common.field_problems import is_set
from passes.tensorrt.config import TensorRTConfig


def select_backend(config: TensorRTConfig) -> Backend:
    """Return the backend of a step, after a check that it is installed and supports the targets.

    Raises:
        GpuError: as ``select_targets``.
        MissingExtraError: the backend is not installed; a build bundle needs none.
        RequirementError: the backend does not support the targets, or fields do not apply to it.
        UsageError: the backend is `auto`, and both are installed.
    """
    backend = resolve_backend(config.backend)
    if problems := _field_problems(config, backend):
        lines, remedies = zip(*problems, strict=True)
        raise RequirementError("; ".join(lines), remedy="; ".join(remedies))
    if select_targets(config, backend, list_gpus()) and not backend.installed:
        raise MissingExtraError(backend.distribution, f"`backend: {backend.name}`", backend.extra)
    return backend


def _field_problems(config: TensorRTConfig, backend: Backend) -> list[tuple[str, str]]:
    """Return problems of fields with the backend, each with its remedy."""
    name = backend.distribution
    if not backend.targets:
        if len(config.targets) < 2:
            return []
        targets = ", ".join(config.targets)
        problem = f"{name} builds for the GPU of this machine only, but `targets` names {targets}"
        return [(problem, "leave `targets` out, or name one")]
    supported = ", ".join(backend.targets)
    problems = []
    if not config.targets:
        problem = f"{name} needs the compute capabilities to build for, but `targets` is empty"
        problems.append((problem, f"set `targets: [sm86]`, or others of {supported}"))
    if unknown := [target for target in config.targets if target not in backend.targets]:
        remedy = f"choose from {supported}; for others use `backend: trt` on a machine with the GPU"
        problems.append((f"{name} does not build for {', '.join(unknown)}", remedy))
    if is_set(config, "on_missing_gpu"):
        problem = f"`on_missing_gpu` has no effect with {name}, which needs no GPU"
        problems.append((problem, "leave `on_missing_gpu` out"))
    return problems


def select_targets(
    config: TensorRTConfig, backend: Backend, gpus: Sequence[Gpu]
) -> tuple[str, ...]:
    """Return the compute capabilities to build for; none if a build bundle is written instead.

    Args:
        config: config of the step.
        backend: the step's backend.
        gpus: the GPUs of this machine.

    Raises:
        GpuError: the backend is `trt`, and this machine lacks the GPU.
    """
    if backend.targets:
        return config.targets
    target = config.targets[0] if config.targets else None
    if gpus and target in {None, gpus[0].target}:
        return (gpus[0].target,)
    if config.on_missing_gpu == "bundle":
        return ()
    present = (
        f"the GPU of this machine ({gpus[0].name}) is {gpus[0].target}"
        if gpus
        else "this machine has no GPU"
    )
    raise GpuError(
        f"{backend.distribution} builds on the GPU that an engine is for ({target or 'any'}), "
        f"and {present}",
        remedy="run the step on a machine with that GPU; or set `on_missing_gpu: bundle` to write "
        "everything that a build there needs; or set `backend: rtx`, which needs no GPU",
    )


def targets_on_this_machine(config: TensorRTConfig) -> tuple[str, ...]:
    """Return ``select_targets`` for the step's backend, which is checked first."""
    return select_targets(config, select_backend(config), list_gpus())
