"""The passes, one folder each; ``step.py`` is the only file of a pass that others import."""
