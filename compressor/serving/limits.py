"""Bounds on what one server holds and waits for."""

from __future__ import annotations

from dataclasses import dataclass

from compressor.foreign_files.limits import MEBIBYTE


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Bounds on requests; what is beyond them is refused with a status, never swallowed."""

    max_body_bytes: int = 64 * MEBIBYTE
    """Bytes of one request; 413 beyond. A noisy screenshot is 7 MB."""
    max_bodies_bytes: int = 512 * MEBIBYTE
    """Bytes of all requests that are being read at once; 429 beyond."""
    max_pixels: int = 1 << 25
    """Pixels of one image, checked before it is decoded."""
    max_images: int = 32
    """Images of one request."""
    max_choices: int = 16
    """Answers of one request: ``n`` times the number of prompts."""
    max_stop_texts: int = 16
    """Stop texts of one request."""
    max_grammar_bytes: int = MEBIBYTE
    """Bytes of the schemas, tools and grammars of one request."""
    max_seconds: float = 600.0
    """Time of one answer, from the arrival of its request."""
    max_connections: int = 4096
    """Open connections; further ones are closed."""
    header_seconds: float = 10.0
    """Time for the headers of a request to arrive."""
    body_seconds: float = 60.0
    """Time for the body of a request to arrive."""
    send_seconds: float = 60.0
    """Time in which a client must take what is sent to it."""
    drain_seconds: float = 30.0
    """Time for running answers to end after SIGTERM."""
