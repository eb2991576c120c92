"""Structured pruning: fewer channels, heads and inner widths, in a smaller dense model."""
