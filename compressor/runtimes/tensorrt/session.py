"""Sessions of TensorRT engines, on the GPU that they were built for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compressor.data.contract import Batch
from compressor.errors import DamagedArtifactError, DataError, GpuError, ModelError, PassError
from compressor.foreign_files.opening import open_file
from compressor.models.capabilities.signature import InputSpec
from compressor.runtimes.call_limit import limited_call
from compressor.runtimes.session import Session
from compressor.runtimes.tensorrt.backends import BACKENDS, import_backend
from compressor.runtimes.tensorrt.cuda import Gpu, list_gpus
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


def select_engine(manifest: EngineManifest, gpus: Sequence[Gpu]) -> tuple[EngineFile, Gpu]:
    """Return the engine for the first of the GPUs, and that GPU.

    Raises:
        GpuError: there is no GPU, or the engines were built for others.
    """
    targets = [engine.target for engine in manifest.engines]
    if not gpus:
        raise GpuError(
            "this machine has no GPU (the CUDA driver lists none), and an engine needs one",
            remedy=f"copy the artifact to a machine with {' or '.join(targets)}",
        )
    for engine in manifest.engines:
        if engine.target == gpus[0].target:
            return engine, gpus[0]
    raise GpuError(
        f"the engine was built for {', '.join(targets)}; "
        f"the GPU of this machine ({gpus[0].name}) is {gpus[0].target}",
        remedy=f"build it for this GPU: `targets: [{gpus[0].target}]`",
    )


def unavailable_reason(folder: Path) -> str | None:
    """Return why an engine cannot run on this machine, as a sentence; None if it can.

    Raises:
        DamagedArtifactError: the files do not match engine.json: they must not run anywhere.
        ModelError: the folder holds neither an engine nor a build bundle.
    """
    if (folder / BUNDLE).is_file() and not (folder / ENGINE).is_file():
        return "it is a build bundle: the engine is not built yet"
    try:
        select_engine(read_verified_manifest(folder), list_gpus())
    except GpuError as error:
        return error.what
    return None


class EngineSession(Session):
    """An engine with its first optimization profile.

    ``compute`` copies arrays to the GPU and back; latency includes that. Everything that can be
    checked without native code is checked first: engine.json and every hash, then the GPU's compute
    capability, then the library's version.

    Attributes:
        target: compute capability of the GPU that it runs on.
    """

    def __init__(self, folder: Path) -> None:
        """Load the engine for this machine's first GPU.

        Raises:
            DamagedArtifactError: the files do not match engine.json.
            GpuError: the engine was not built for the first GPU.
            ModelError: the folder holds no engine, the library has another version, or the GPU
                cannot load the engine.
        """
        manifest = read_verified_manifest(folder)
        engine, gpu = select_engine(manifest, list_gpus())
        self.target = engine.target
        self._profiles = manifest.profiles
        file = folder / engine.file
        trt = import_backend(BACKENDS[manifest.backend])
        if trt.__version__ != manifest.backend_version:
            raise ModelError(
                f"{file} was built by {manifest.backend} {manifest.backend_version}, but "
                f"{trt.__version__} is installed; an engine runs in the version that built it",
                remedy="install that version, or build the engine again",
            )
        with open_file(file, DamagedArtifactError) as handle:
            serialized = handle.read()
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(serialized)
        if self._engine is None:
            raise ModelError(f"{gpu.name} cannot load {file}, although it was built for this GPU")
        self._context = self._engine.create_execution_context()
        self.runtime = f"{BACKENDS[manifest.backend].distribution} {trt.__version__}, {gpu.name}"
        self.inputs = tuple(
            InputSpec(
                tensor.name,
                _DTYPES[tensor.dtype],
                tuple(
                    f"{tensor.name}.{axis}" if size < 0 else size
                    for axis, size in enumerate(tensor.shape)
                ),
            )
            for tensor in manifest.inputs
        )
        self.output_names = tuple(tensor.name for tensor in manifest.outputs)

    def compute(self, feeds: Batch) -> Batch:
        """See ``Session.compute``.

        Raises:
            DataError: a shape is outside the engine's profile.
            PassError: the engine failed.
        """
        import torch

        self._check_shapes(feeds)
        inputs = {name: torch.from_numpy(array).cuda() for name, array in feeds.items()}
        for name, tensor in inputs.items():
            self._context.set_input_shape(name, tuple(tensor.shape))
            self._context.set_tensor_address(name, tensor.data_ptr())
        outputs: dict[str, torch.Tensor] = {}
        for name in self.output_names:
            dtype = getattr(torch, _DTYPES[self._engine.get_tensor_dtype(name).name.lower()])
            shape = tuple(self._context.get_tensor_shape(name))
            outputs[name] = torch.empty(shape, dtype=dtype, device="cuda")
            self._context.set_tensor_address(name, outputs[name].data_ptr())
        stream = torch.cuda.current_stream()
        with limited_call(feeds):
            if not self._context.execute_async_v3(stream.cuda_stream):
                raise PassError("the engine failed on the GPU")
            stream.synchronize()
        return {name: tensor.cpu().numpy() for name, tensor in outputs.items()}

    def close(self) -> None:
        """Release the engine."""
        del self._context, self._engine

    def _check_shapes(self, feeds: Mapping[str, Any]) -> None:
        problems = [
            f"    {name}: {list(array.shape)} is not within "
            f"{list(profile.min)} to {list(profile.max)}"
            for name, array in feeds.items()
            if (profile := self._profiles.get(name)) is not None
            and not all(
                low <= size <= high
                for low, size, high in zip(profile.min, array.shape, profile.max, strict=True)
            )
        ]
        if problems:
            raise DataError(
                "the engine was not built for these shapes:\n" + "\n".join(problems),
                remedy="choose a batch size within its profile, or build it with a wider profile",
            )
