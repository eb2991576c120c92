"""A TensorRT engine as a Session, on the GPU that it was built for and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.artifacts.errors_from_os import reading
from compressor.data.contract import Batch
from compressor.errors import DataError, GpuError, ModelError, PassError
from compressor.models.capabilities.signature import InputSpec
from compressor.runtimes.session import Session
from compressor.runtimes.tensorrt.backends import BACKENDS, library
from compressor.runtimes.tensorrt.cuda import Gpu, gpus
from compressor.runtimes.tensorrt.manifest import (
    BUNDLE,
    ENGINE,
    EngineFile,
    EngineManifest,
    read_verified_manifest,
)

_DTYPES = {
    "float": "float32",
    "half": "float16",
    "int8": "int8",
    "int32": "int32",
    "int64": "int64",
    "bool": "bool",
    "uint8": "uint8",
}


def select_engine(manifest: EngineManifest, found: tuple[Gpu, ...]) -> tuple[EngineFile, Gpu]:
    """The engine for the first GPU.

    Raises:
        GpuError: there is no GPU, or the engine is for others.
    """
    if not found:
        raise GpuError(
            "there is no GPU here (CUDA's driver shows none), and an engine runs on nothing else",
            remedy="copy the artifact to a machine with "
            + " or ".join(one.target for one in manifest.engines),
        )
    for one in manifest.engines:
        if one.target == found[0].target:
            return one, found[0]
    told = ", ".join(one.target for one in manifest.engines)
    raise GpuError(
        f"the engine was built for {told}; the GPU here ({found[0].name}) is {found[0].target}",
        remedy=f"build it for this one: `targets: [{found[0].target}]`",
    )


def unavailable_reason(folder: Path) -> str | None:
    """Why an engine cannot run on this machine, in a sentence; None where it can.

    Raises:
        DamagedArtifactError: it is not the engine that its engine.json tells of: it shall run nowhere.
        ModelError: the folder holds neither engine nor build bundle.
    """
    if (folder / BUNDLE).is_file() and not (folder / ENGINE).is_file():
        return "it is a build bundle: no engine was built yet"
    try:
        select_engine(read_verified_manifest(folder), gpus())
    except GpuError as error:
        return error.what
    return None


class EngineSession(Session):
    """One engine and its first profile; arrays are copied to the GPU and back in ``compute``, and that is timed too.

    What can be checked without native code comes first: engine.json and every hash, then the GPU, its compute capability, and the
    library's version.

    Attributes:
        target: the compute capability of the GPU that it runs on.
    """

    def __init__(self, folder: Path) -> None:
        manifest = read_verified_manifest(folder)
        entry, gpu = select_engine(manifest, gpus())
        self.target = entry.target
        self._profiles = manifest.profiles
        trt = library(BACKENDS[manifest.backend])
        if trt.__version__ != manifest.backend_version:
            raise ModelError(
                f"{folder / entry.file} was built by {manifest.backend} {manifest.backend_version}; "
                f"{trt.__version__} is installed, and an engine is bound to its version",
                remedy="install that version, or build the engine again",
            )
        with reading(folder / entry.file):
            serialized = (folder / entry.file).read_bytes()
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(serialized)
        if self._engine is None:
            raise ModelError(
                f"{gpu.name} cannot load {folder / entry.file}, though it is the one that was built for it"
            )
        self._context = self._engine.create_execution_context()
        self.runtime = f"{BACKENDS[manifest.backend].distribution} {trt.__version__}, {gpu.name}"
        self.inputs = tuple(
            InputSpec(
                one.name,
                _DTYPES[one.dtype],
                tuple(_named(one.name, axis, size) for axis, size in enumerate(one.shape)),
            )
            for one in manifest.inputs
        )
        self.output_names = tuple(one.name for one in manifest.outputs)

    def compute(self, feeds: Batch) -> Batch:
        """See ``Session.compute``.

        Raises:
            DataError: a shape is outside the engine's profile.
            PassError: the engine failed.
        """
        import torch

        self._check(feeds)
        placed = {name: torch.from_numpy(array).cuda() for name, array in feeds.items()}
        for name, tensor in placed.items():
            self._context.set_input_shape(name, tuple(tensor.shape))
            self._context.set_tensor_address(name, tensor.data_ptr())
        results: dict[str, torch.Tensor] = {}
        for name in self.output_names:
            dtype = getattr(torch, _DTYPES[self._engine.get_tensor_dtype(name).name.lower()])
            results[name] = torch.empty(
                tuple(self._context.get_tensor_shape(name)), dtype=dtype, device="cuda"
            )
            self._context.set_tensor_address(name, results[name].data_ptr())
        stream = torch.cuda.current_stream()
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise PassError("the engine failed on the GPU")
        stream.synchronize()
        return {name: tensor.cpu().numpy() for name, tensor in results.items()}

    def close(self) -> None:
        """Let go of the engine."""
        del self._context, self._engine

    def _check(self, feeds: Mapping[str, Any]) -> None:
        told = [
            f"    {name}: {list(array.shape)} is not within {list(profile.min)} to {list(profile.max)}"
            for name, array in feeds.items()
            if (profile := self._profiles.get(name)) is not None
            and not all(
                low <= size <= high
                for low, size, high in zip(profile.min, array.shape, profile.max, strict=True)
            )
        ]
        if told:
            raise DataError(
                "the engine was not built for these shapes:\n" + "\n".join(told),
                remedy="choose a batch size within its profile, or build it with a wider one",
            )


def _named(name: str, axis: int, size: int) -> int | str:
    return f"{name}.{axis}" if size < 0 else size
