"""Any artifact as one callable ``Session``."""

from compressor.runtimes.session import Session, open_session

__all__ = ["Session", "open_session"]
