"""Checkpoints of the transformers library: language models, and the vision tower of ``glm4v``."""
