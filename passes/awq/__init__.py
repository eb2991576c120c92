"""Weights of a few bits for language models, one decoder layer in memory at a time."""
