"""The pages in a browser: nothing on its console, the figures there, nothing that sticks out on a phone, dark in dark mode."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from compressor.artifacts.runs import GateResult
from compressor.reports.pages.html import artifact_html, run_html
from compressor.reports.rows.run import RunReport
from tests.support.reports import history, manifest, measurement, phone_run

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")
PHONE_PIXELS = 390

# The page in a frame as wide as a phone, and what the frame finds in it, as text that --dump-dom prints.
FRAME = """<!doctype html><iframe width=%d height=900 srcdoc="%s"></iframe><pre id=found></pre><script>
const frame = document.querySelector("iframe");
frame.onload = () => {
  const page = frame.contentDocument;
  const boxes = [...page.querySelectorAll("svg")].map(one => one.getBoundingClientRect());
  document.getElementById("found").textContent = JSON.stringify({
    width: page.documentElement.scrollWidth,
    figures: boxes.filter(one => one.width > 100 && one.height > 50).length,
    paper: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
    title: page.title,
  });
};
</script>"""


def seen(
    tmp_path: Path, page: str, *flags: str, width: int = PHONE_PIXELS
) -> tuple[dict[str, object], list[str]]:
    """What a browser finds in a page, and what it says on its console."""
    assert CHROMIUM is not None
    (tmp_path / "frame.html").write_text(FRAME % (width, html.escape(page)), encoding="utf-8")
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
    told = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert told is not None
    return json.loads(html.unescape(told[1])), [
        line for line in done.stderr.splitlines() if "CONSOLE" in line
    ]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("pages")
    gate = GateResult(
        gate="top1 min 0.9",
        step="onnx",
        metric="top1",
        unit="fraction",
        value=0.8,
        found=0.8,
        low=0.78,
        high=0.82,
        limit=0.9,
        basis="2000 samples",
        passed=False,
        reason="0.8 is below 0.9",
    )
    report = RunReport("phone", phone_run(home), [gate], "autoglm-compress run pipeline.yaml")
    tensors = {
        f"vision.blocks.{at}.filter:input": {
            "values": 10**6,
            "minimum": -1.0,
            "maximum": at + 1.0,
            "bound": at + 0.5,
        }
        for at in range(12)
    }
    (home / "calibration.json").write_text(json.dumps({"tensors": tensors}))
    found = measurement()
    made = manifest(metrics=found.metrics, summary={"history": history()})
    return {
        "run": run_html(report, home, "d" * 64),
        "artifact": artifact_html(made, found, "autoglm-compress run pipeline.yaml", home),
    }


@pytest.mark.parametrize(("which", "figures"), [("run", 6), ("artifact", 5)])
def test_a_phone_shows_all_of_it(
    pages: dict[str, str], tmp_path: Path, which: str, figures: int
) -> None:
    found, console = seen(tmp_path, pages[which])
    assert not console
    assert found["figures"] == figures
    assert found["width"] <= PHONE_PIXELS, "nothing sticks out"
    assert found["title"]


def test_dark_mode_is_dark(pages: dict[str, str], tmp_path: Path) -> None:
    light, _ = seen(tmp_path, pages["run"], "--blink-settings=preferredColorScheme=1")
    dark, _ = seen(tmp_path, pages["run"], "--blink-settings=preferredColorScheme=0")
    assert light["paper"] == "rgb(251, 251, 249)"
    assert dark["paper"] == "rgb(20, 22, 26)"


def test_a_console_error_would_be_seen(tmp_path: Path) -> None:
    _, console = seen(
        tmp_path, "<!doctype html><title>x</title><script>throw new Error('seen')</script>"
    )
    assert any("seen" in line for line in console)
