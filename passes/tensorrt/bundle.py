"""A build bundle: all that a machine with a GPU needs to build an engine of enterprise TensorRT."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from compressor.runtimes.tensorrt.manifest import BuildSettings, Bundle
from compressor.runtimes.tensorrt.profiles import Profile


def bundle_of(facts: BuildSettings, file: str) -> Bundle:
    """The bundle of a graph that lies in ``file``, with the command that builds it by NVIDIA's own trtexec."""
    command = [
        "trtexec",
        f"--onnx={file}",
        "--stronglyTyped",
        f"--memPoolSize=workspace:{facts.workspace_mb}",
    ]
    if facts.optimization_level is not None:
        command.append(f"--builderOptimizationLevel={facts.optimization_level}")
    if facts.profiles:
        command += [
            f"--{kind}Shapes={_shapes(facts.profiles, kind)}" for kind in ("min", "opt", "max")
        ]
    return Bundle(**dict(facts), command=shlex.join([*command, "--saveEngine=model.engine"]))


def _shapes(profiles: Mapping[str, Profile], kind: str) -> str:
    shapes: dict[str, Sequence[int]] = {name: getattr(one, kind) for name, one in profiles.items()}
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())
