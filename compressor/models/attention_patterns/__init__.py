"""Attention patterns: the heads that attend to a window, their masks, and models with them."""
