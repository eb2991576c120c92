"""A packed model behind an OpenAI-compatible HTTP API, and small models behind ``/v1/predict``."""
