"""Weight-only quantization of linear layers: AWQ scaling, GPTQ rounding or rounding to nearest."""
