"""Sentence encoders: the mean of BERT's tokens as a vector of length 1."""
