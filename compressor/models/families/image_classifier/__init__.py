"""Image classifiers: a vision encoder of the reference model with a linear head."""
