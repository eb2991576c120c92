"""Build TensorRT engines from ONNX graphs."""
