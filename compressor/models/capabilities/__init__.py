"""Capabilities of models, one record per module; `capability.py` explains how passes use them."""
