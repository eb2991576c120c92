"""Samples to tensors: the data sources, and what is measured on them."""
