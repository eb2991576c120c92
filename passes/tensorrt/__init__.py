"""Builds TensorRT engines of ONNX graphs."""
