"""A torch model as a Session."""

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
    """Eager torch in inference mode, as a user of the model would run it.

    The number of threads is torch's own, of the whole process; the last session opened decides.
    """

    def __init__(self, folder: Path, threads: int, device: str) -> None:
        if device != "cpu" and not torch.cuda.is_available():
            raise UsageError(
                f"torch sees no {device} device on this machine", remedy="use --device cpu"
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
        """See ``Session.compute``; bfloat16 answers come back as float32, which holds them exactly."""
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
