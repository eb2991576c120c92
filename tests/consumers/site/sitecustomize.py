"""Let torchvision be imported beside a torch for CPUs; Python runs this file when it starts.

torchvision's builds for CUDA do not load their operators there, and registering the shapes of two
of them fails. Image processors need none of them.
"""

import importlib.metadata
from contextlib import suppress

with suppress(ImportError, importlib.metadata.PackageNotFoundError):
    if "+cpu" not in importlib.metadata.version("torchvision"):
        import torch

        LIBRARY = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
