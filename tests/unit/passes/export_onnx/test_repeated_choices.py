"""A torch model that chooses among equal scores, and graphs that choose others."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from compressor.errors import ParityError
from compressor.models.capabilities.signature import InputSpec
from compressor.runtimes.session import Session
from passes.export_onnx.config import ParityConfig
from passes.export_onnx.parity import Limits, Tolerance, compare
from passes.export_onnx.repeated_choices import RepeatedChoices

REGIONS, CHOSEN = 6, 3
CONFIG = ParityConfig(batch_size=4)
INPUTS = (InputSpec("scores", "float32", ("batch", REGIONS)),)
SCORES = np.float32(
    [[5, 1, 1, 1, 1, 1], [1, 1, 1, 7, 1, 1], [1, 1, 1, 1, 1, 1], [4, 3, 2, 1, 1, 1]]
)
BATCHES = [{"scores": SCORES}]


class TorchDetector(Session):
    """Chooses the regions with the best scores, and returns their numbers and scores."""

    runtime, inputs, output_names = "torch", INPUTS, ("boxes",)

    def compute(self, feeds):
        scores = torch.from_numpy(feeds["scores"])
        best = torch.topk(scores, CHOSEN, dim=1)
        regions = torch.arange(REGIONS).expand(len(scores), -1).gather(1, best.indices)
        return {"boxes": (10.0 * regions + best.values).numpy()}


class GraphSession(Session):
    runtime, inputs, output_names = "onnxruntime", INPUTS, ("boxes",)

    def __init__(self, folder):
        self.session = onnxruntime.InferenceSession(folder / "model.onnx")

    def compute(self, feeds):
        return {"boxes": self.session.run(["boxes"], feeds)[0]}


def detector_graph(folder, nudge, factor=10.0):
    """Write a graph that chooses by the scores and a nudge for each region."""
    nodes = [
        helper.make_node("Add", ["scores", "nudge"], ["nudged"]),
        helper.make_node("TopK", ["nudged", "k"], ["best", "chosen"], axis=1),
        helper.make_node("GatherElements", ["scores", "chosen"], ["values"], axis=1),
        helper.make_node("Cast", ["chosen"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["numbers", "factor"], ["regions"]),
        helper.make_node("Add", ["regions", "values"], ["boxes"]),
    ]
    constants = {"nudge": np.float32(nudge), "k": np.int64([CHOSEN]), "factor": np.float32(factor)}
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", REGIONS])],
        [helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["batch", CHOSEN])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    onnx.save(model, folder / "model.onnx")


def compare_in(folder, *, with_choices=True):
    reference, limits = TorchDetector(), Limits.from_config(CONFIG, Tolerance.FLOAT)
    repeated = RepeatedChoices(reference, folder, INPUTS, limits).outputs if with_choices else None
    return compare(reference, GraphSession(folder), BATCHES, CONFIG, repeated=repeated)


@pytest.mark.parametrize(
    "nudge", [np.arange(6) * 1e-5, np.arange(6) * -1e-5], ids=["last", "first"]
)
def test_a_graph_may_choose_others_of_equal_scores(tmp_path, nudge):
    detector_graph(tmp_path, nudge)
    assert [result.max_abs for result in compare_in(tmp_path)] == [0, 0]


def test_without_the_choices_of_the_graph_the_outputs_differ(tmp_path):
    detector_graph(tmp_path, np.arange(6) * 1e-5)
    with pytest.raises(ParityError):
        compare_in(tmp_path, with_choices=False)


def test_worse_choices_are_an_error(tmp_path):
    detector_graph(tmp_path, [0, 0, 0, 0, 0, 99])
    with pytest.raises(ParityError, match="at batch size 1"):
        compare_in(tmp_path)


def test_other_values_for_the_same_choices_are_an_error(tmp_path):
    detector_graph(tmp_path, np.arange(6) * 1e-5, factor=11)
    with pytest.raises(ParityError, match="at batch size 4"):
        compare_in(tmp_path)
