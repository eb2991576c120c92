"""GGUF files, which llama.cpp and programs built on it load."""
