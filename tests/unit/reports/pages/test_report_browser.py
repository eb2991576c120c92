"""Open the pages in Chromium: no console errors, all charts, no overflow on a phone, dark mode."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from compressor.reports.pages.html import artifact_html, run_html
from tests.support.reports import (
    COMMAND,
    gate_result,
    manifest,
    measurement,
    run_report,
    training_history,
)

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
PHONE_PIXELS = 390

# Shows the page in a frame as wide as a phone, and writes what it measures as text that
# --dump-dom prints.
FRAME = """<!doctype html><iframe width=%d height=900 srcdoc="%s"></iframe><pre id=measured></pre>
<script>
const frame = document.querySelector("iframe");
frame.onload = () => {
  const page = frame.contentDocument;
  const boxes = [...page.querySelectorAll("svg")].map(svg => svg.getBoundingClientRect());
  document.getElementById("measured").textContent = JSON.stringify({
    width: page.documentElement.scrollWidth,
    charts: boxes.filter(box => box.width > 100 && box.height > 50).length,
    background: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
    title: page.title,
  });
};
</script>"""


@dataclass(frozen=True)
class Rendering:
    """A page as the browser shows it, and the lines that it printed on its console."""

    width: int
    charts: int
    background: str
    title: str
    console: list[str]


def render(tmp_path: Path, page: str, *flags: str) -> Rendering:
    assert CHROMIUM is not None
    frame = FRAME % (PHONE_PIXELS, html.escape(page))
    (tmp_path / "frame.html").write_text(frame, encoding="utf-8")
    command = [
        CHROMIUM,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1400,1000",
        "--enable-logging=stderr",
        "--virtual-time-budget=4000",
        f"--user-data-dir={tmp_path / 'profile'}",
        *flags,
        "--dump-dom",
        (tmp_path / "frame.html").as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    measured = re.search(r'<pre id="measured">(.*?)</pre>', done.stdout, re.DOTALL)
    assert measured is not None
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Rendering(**json.loads(html.unescape(measured[1])), console=console)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the page of a run and that of an artifact with a calibration table."""
    home = tmp_path_factory.mktemp("pages")
    report = run_report(home, gates=[gate_result(basis="2000 samples")])
    tensors = {
        f"vision.blocks.{block}.filter:input": {
            "values": 10**6,
            "minimum": -1.0,
            "maximum": block + 1.0,
            "bound": block + 0.5,
        }
        for block in range(12)
    }
    (home / "calibration.json").write_text(json.dumps({"tensors": tensors}))
    measured = measurement()
    student = manifest(metrics=measured.metrics, summary={"history": training_history()})
    return {
        "run": run_html(report, home, "d" * 64),
        "artifact": artifact_html(student, measured, COMMAND, home),
    }


@pytest.mark.parametrize(("page", "charts"), [("run", 6), ("artifact", 5)])
def test_a_page_fits_the_width_of_a_phone(
    pages: dict[str, str], tmp_path: Path, page: str, charts: int
) -> None:
    rendering = render(tmp_path, pages[page])
    assert not rendering.console
    assert rendering.charts == charts
    assert rendering.width <= PHONE_PIXELS
    assert rendering.title


def test_dark_mode_has_a_dark_background(pages: dict[str, str], tmp_path: Path) -> None:
    light = render(tmp_path, pages["run"], "--blink-settings=preferredColorScheme=1")
    dark = render(tmp_path, pages["run"], "--blink-settings=preferredColorScheme=0")
    assert light.background == "rgb(251, 251, 249)"
    assert dark.background == "rgb(20, 22, 26)"


def test_errors_on_the_console_are_detected(tmp_path: Path) -> None:
    page = "<!doctype html><title>x</title><script>throw new Error('detected')</script>"
    assert any("detected" in line for line in render(tmp_path, page).console)
