"""Print what a server answers for."""

from __future__ import annotations

from compressor.reports.console.terminal import out, print_pairs
from compressor.serving.launch import RunningServer


def render_started(server: RunningServer) -> None:
    """Print names, address and bounds of a server that answers."""
    names = ", ".join(server.names)
    rows = [("model", names), ("address", f"{server.url}/v1"), *server.rows]
    print_pairs(rows, title="serving")
    out.print("Ctrl-C ends it, once running answers are complete.")
    out.file.flush()
