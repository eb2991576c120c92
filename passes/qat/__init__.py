"""The ``qat`` pass."""
