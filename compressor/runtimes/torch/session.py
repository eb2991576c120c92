"""Sessions of torch models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from compressor.data.contract import Batch
from compressor.errors import UsageError
from compressor.models.adapters.base import find_base
from compressor.models.adapters.peft_modules import add_adapter, check_peft
from compressor.models.capabilities.flop_counting import count_flops
from compressor.models.checkpoint.description import ModelDescription, read_description
from compressor.models.checkpoint.loading import load_module
from compressor.runtimes.session import Array, Session


class TorchSession(Session):
    """A model in eager torch and inference mode, as a user would run it.

    Attributes:
        module: the model.
        device: the torch device it runs on.
    """

    def __init__(self, folder: Path, threads: int, device: str) -> None:
        """Load the model.

        Args:
            folder: a model folder with config.json and safetensors weights.
            threads: torch's number of threads, which is set for the whole process.
            device: a torch device.

        Raises:
            ModelError: the model cannot be loaded.
            UsageError: torch has no such device.
        """
        if device != "cpu" and not torch.cuda.is_available():
            raise UsageError(
                f"torch finds no {device!r} device on this machine", remedy="use --device cpu"
            )
        model = read_description(folder)
        self.runtime = f"torch {torch.__version__}"
        self.inputs = model.signature.inputs
        self.output_names = model.signature.outputs
        self._unit = model.signature.unit
        self.device = device
        torch.set_num_threads(threads)
        self.module = self._load(model, device)

    def _load(self, model: ModelDescription, device: str) -> torch.nn.Module:
        return load_module(model, device)

    @torch.inference_mode()
    def compute(self, feeds: Batch) -> Batch:
        """See ``Session.compute``; bfloat16 becomes float32, which represents it exactly."""
        tensors = {
            name: torch.from_numpy(array if array.flags.writeable else array.copy()).to(self.device)
            for name, array in feeds.items()
        }
        outputs = self.module(**tensors)
        return {name: _array(outputs[name]) for name in self.output_names}

    def sample_macs(self, batch: Mapping[str, Array]) -> int | None:
        """See ``Session.sample_macs``; the counts of a description are those of other sizes."""
        variable = {
            axis for spec in self.inputs for axis in spec.shape[1:] if isinstance(axis, str)
        }
        if self._unit != "sample" or not variable:
            return None
        with count_flops(self.module, with_scores=True) as counter:
            self.run(batch)
        return counter.get_total_flops() // 2 or None


class AdaptedSession(TorchSession):
    """The base of an adapter with the adapter in it."""

    def __init__(self, adapter: Path, threads: int, device: str) -> None:
        """Find the base, compare its digest, and load both.

        Args:
            adapter: a folder with an adapter and ``base.json``.
            threads: as for ``TorchSession``.
            device: a torch device.

        Raises:
            ModelError: the base is missing or another model, or the adapter does not fit it.
            MissingExtraError: PEFT is not installed.
            UsageError: torch has no such device.
        """
        check_peft(f"opening the adapter {adapter}")
        self._adapter = adapter
        super().__init__(find_base(adapter), threads, device)

    def _load(self, model: ModelDescription, device: str) -> torch.nn.Module:
        return add_adapter(super()._load(model, device), self._adapter).to(device)


def _array(tensor: torch.Tensor) -> Array:
    array: Array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy()
    return array
