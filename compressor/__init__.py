"""The engine of autoglm-compress. Importing it loads neither torch, onnx nor tensorrt."""
