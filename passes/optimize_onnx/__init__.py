"""The ``optimize-onnx`` pass: ONNX graphs of any origin in FP16, INT8 or INT4."""
