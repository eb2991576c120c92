"""Weights of a few bits: of checkpoints, one decoder layer in memory at a time, and of smaller models of other families."""
