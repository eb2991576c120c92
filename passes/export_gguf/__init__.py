"""The ``export-gguf`` pass: one GGUF file with the integers of a quantized checkpoint."""
