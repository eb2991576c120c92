"""Plain image classifiers: a vision encoder of the reference model and a linear head."""
