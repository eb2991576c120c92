"""Show how far the hashing of large files is, on stderr."""

from __future__ import annotations

import time
from pathlib import Path

_FIRST_SECONDS = 5.0
"""Seconds of hashing before the first line."""
_LINE_SECONDS = 15.0
"""Least seconds between two lines."""
_PAUSE_SECONDS = 1.0
"""A pause after which hashing is timed anew."""


class ReadingDisplay:
    """Print a line once hashing takes long, for ``observed_reads``."""

    def __init__(self) -> None:
        self.last_read = self.next_line = self.file_start = 0.0
        self.file: Path | None = None
        self.first_bytes = 0

    def __call__(self, path: Path, done: int, total: int) -> None:
        """Take the bytes of a file that have been read."""
        now = time.monotonic()
        if now - self.last_read > _PAUSE_SECONDS:
            self.next_line = now + _FIRST_SECONDS
        self.last_read = now
        if path != self.file or done < self.first_bytes:
            self.file, self.file_start, self.first_bytes = path, now, done
        if now < self.next_line:
            return
        self.next_line = now + _LINE_SECONDS
        read = done - self.first_bytes
        left = (now - self.file_start) / read * (total - done) if read else None
        _print_line(path.name, done, total, left)


def _print_line(name: str, done: int, total: int, seconds_left: float | None) -> None:
    from compressor.reports.console.terminal import err
    from compressor.reports.rows import formatting

    line = f"hashing {name}: {formatting.size(done)} of {formatting.size(total)}"
    if seconds_left is not None:
        line += f", about {formatting.duration(seconds_left)} left"
    err.print(line, style="dim", markup=False)
