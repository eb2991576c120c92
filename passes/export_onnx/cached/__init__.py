"""Decoders of classes whose graph is not built: traced, with their cache as inputs and outputs."""
