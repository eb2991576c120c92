"""The ``export-mnn`` pass: an ONNX graph as a file of MNN, for phones."""
