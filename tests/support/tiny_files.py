"""The smallest model file and pictures that the tests can work on."""

from __future__ import annotations

from pathlib import Path


def tiny_onnx(value: float = 1.0) -> bytes:
    """Return the ONNX file of the graph ``y = x + value``."""
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y"))
    constant = helper.make_tensor("c", TensorProto.FLOAT, [1], [value])
    add = helper.make_node("Add", ["x", "c"], ["y"])
    graph = helper.make_graph([add], "tiny", [x], [y], [constant])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]).SerializeToString()


def draw_pictures(folder: Path, count: int) -> None:
    """Write ``count`` noisy 16x16 PNG files each into the folders ``dark`` and ``light``."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    for name, level in (("dark", 60), ("light", 190)):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = (level + generator.integers(-50, 50, (16, 16, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


def tiny_network() -> bytes:
    """Return the ONNX file of two linear layers with a ReLU between them, 16 to 4 values."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)
    shapes = {"first": (16, 32), "second": (32, 4)}
    weights = [
        numpy_helper.from_array(generator.normal(size=shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("MatMul", ["active", "second"], ["logits"]),
    ]
    graph = helper.make_graph(nodes, "tiny", [x], [logits], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]).SerializeToString()
