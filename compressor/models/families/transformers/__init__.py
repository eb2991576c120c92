"""Checkpoints of the transformers library: decoders of language models, and the vision tower of ``glm4v``."""
