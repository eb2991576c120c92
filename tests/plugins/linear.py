"""A foreign model format and a pass over it, in one file: a linear classifier in ``linear.npz``.

Arrays: ``weight`` float32 [classes, features] and ``bias`` float32 [classes].
"""

import numpy as np

from compressor.engine.contract import Pass, PassConfig, PassOutput
from compressor.errors import NumericalError
from compressor.models.capabilities.signature import InputSpec
from compressor.models.facts import ModelFacts
from compressor.runtimes.formats import Format
from compressor.runtimes.layers import Layers, Trace
from compressor.runtimes.session import Session, match_inputs

FILE = "linear.npz"


class LinearSession(Session):
    """Computes ``x @ weight.T + bias`` with NumPy."""

    runtime, output_names = "numpy", ("logits",)

    def __init__(self, folder):
        self.arrays = np.load(folder / FILE)
        features = self.arrays["weight"].shape[1]
        self.inputs = (InputSpec("x", "float32", ("batch", features)),)

    def compute(self, feeds):
        return {"logits": feeds["x"] @ self.arrays["weight"].T + self.arrays["bias"]}


class LinearLayers(Layers):
    """One layer, named ``linear``."""

    def __init__(self, folder):
        self.session = LinearSession(folder)

    def trace(self, batch):
        feeds = match_inputs(batch, self.session.inputs)
        logits = self.session.compute(feeds)
        return Trace({"linear": feeds["x"]}, {"linear": logits["logits"]}, logits)

    def alone(self, batch, inputs):
        return {"linear": self.session.compute({"x": inputs["linear"]})["logits"]}


class Linear(Format):
    """A linear classifier in one NumPy archive."""

    name, summary, runtime = "linear", "a linear classifier in linear.npz", "numpy"

    def recognizes(self, path):
        return (path / FILE).is_file() or path.name == FILE

    def describe(self, path):
        classes, features = np.load(path / FILE)["weight"].shape
        return [("classes", str(classes)), ("features", str(features))]

    def check(self, path):
        bad = [name for name, array in np.load(path / FILE).items() if not np.isfinite(array).all()]
        if bad:
            raise NumericalError(f"{path / FILE}: NaN or infinity in {', '.join(bad)}")

    def facts(self, path):
        weight = np.load(path / FILE)["weight"]
        size = (path / FILE).stat().st_size
        return ModelFacts(parameters=weight.size + len(weight), macs=weight.size, size_bytes=size)

    def open_session(self, path, *, threads, device="cpu"):
        return LinearSession(path)

    def open_layers(self, path, threads):
        return LinearLayers(path)

    def tensors(self, path):
        return {name: (lambda array=array: array) for name, array in np.load(path / FILE).items()}


class RoundLinearConfig(PassConfig):
    decimals: int = 1
    """Decimals that every weight is rounded to."""


class RoundLinear(Pass[RoundLinearConfig]):
    """Rounds the weights of a linear classifier."""

    name, version = "round-linear", 1
    accepts, produces = frozenset({"linear"}), "linear"
    Config, tools = RoundLinearConfig, ("numpy",)

    def run(self, config, parent, out, context):
        arrays = np.load(parent.model / FILE)
        np.savez(out / FILE, **{key: np.round(arrays[key], config.decimals) for key in arrays})
        return PassOutput({"decimals": config.decimals})
