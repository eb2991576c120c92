"""The ``export-ort`` pass: an ONNX graph in the format of ONNX Runtime, for phones."""
