"""Sessions of torch models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from compressor.data.contract import Batch
from compressor.errors import UsageError
from compressor.models.checkpoint.description import read_description
from compressor.models.checkpoint.loading import load_module
from compressor.runtimes.session import Session


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
        self.device = device
        torch.set_num_threads(threads)
        self.module = load_module(model, device)

    @torch.inference_mode()
    def compute(self, feeds: Batch) -> Batch:
        """See ``Session.compute``; bfloat16 becomes float32, which represents it exactly."""
        tensors = {
            name: torch.from_numpy(array if array.flags.writeable else array.copy()).to(self.device)
            for name, array in feeds.items()
        }
        outputs = self.module(**tensors)
        return {name: _array(outputs[name]) for name in self.output_names}


def _array(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = (
        (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy()
    )
    return array
