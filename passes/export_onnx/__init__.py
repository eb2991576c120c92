"""The ``export-onnx`` pass."""
