"""Weights of a few bits in the formats of checkpoints: packed, unpacked, and read back as plain numbers."""
