"""Sentence encoders: BERT, and the mean of its tokens as a vector of length 1."""
