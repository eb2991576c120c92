"""Experts of mixtures that transformers keeps in one tensor, as one linear layer each."""
