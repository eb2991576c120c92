"""Runtimes: a model on disk as a session, a decoder, or layers, through its format."""
