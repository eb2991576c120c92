"""Build the documentation site: ``python -m website.build``, or ``make docs``.

The pages of ``docs/`` are copied to a folder, with the files outside of it that they link to, and
Zensical builds them twice: the Chinese build has Chinese menus, and only its ``zh/`` is used. Then
every link of the site is checked: it leads to a file and an anchor of the site, and nothing is
loaded from another host.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
_HERE = Path(__file__).parent
SITE = ROOT / "site"
OUTSIDE = "repository"
"""Folder of the site for files outside of ``docs/``."""
CHINESE = "zh"
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")
_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_SHIM = "https://unpkg.com/iframe-worker/shim"
"""Script that Zensical would load from another host; ``iframe_worker.js`` is a copy of it."""
_REMOTE = re.compile(r"^(?:[a-z]+:)?//")


def main() -> None:
    """Build ``site/``; exits with code 1 if the site has a problem."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        stage(work / "pages")
        shutil.rmtree(SITE, ignore_errors=True)
        shutil.copytree(_run_zensical(work, "mkdocs.yml"), SITE)
        chinese = _run_zensical(work, "mkdocs.zh.yml") / CHINESE
        shutil.rmtree(SITE / CHINESE)
        shutil.copytree(chinese, SITE / CHINESE)
    (SITE / "404.html").unlink()  # it is for servers, at an address that is not known
    use_local_shim(SITE)
    link_languages(SITE)
    problems = list(site_problems(SITE))
    sys.stderr.writelines(f"{problem}\n" for problem in problems)
    if problems:
        sys.exit(f"{len(problems)} problems")
    sys.stdout.write(f"wrote {SITE.name}/; open {SITE.name}/index.html\n")


def stage(folder: Path) -> None:
    """Copy the pages, and every file that they link to, with links adapted to the copies."""
    waiting = sorted(DOCS.rglob("*"))
    done = set()
    while waiting:
        file = waiting.pop()
        if file in done or file.is_dir():
            continue
        done.add(file)
        target = folder / _staged_path(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix != ".md":
            shutil.copyfile(file, target)
            continue
        text = file.read_text(encoding="utf-8")
        waiting += _linked_files(file, text)
        target.write_text(_adapt_links(file, text), encoding="utf-8")


def use_local_shim(site: Path) -> None:
    """Store the script that the search needs without a server, and load it from the site."""
    shim = site / "assets" / "javascripts" / "iframe_worker.js"
    shutil.copyfile(_HERE / "iframe_worker.js", shim)
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        path = os.path.relpath(shim, page.parent)
        page.write_text(text.replace(_SHIM, path), encoding="utf-8")


def link_languages(site: Path) -> None:
    """Make the language switch of a page lead to the same page in the other language."""
    for chinese in (site / CHINESE).rglob("*.html"):
        english = site / chinese.relative_to(site / CHINESE)
        if english.is_file():
            _link_language(english, "zh", chinese)
            _link_language(chinese, "en", english)


def site_problems(site: Path) -> Iterator[str]:
    """Yield every link of a site that leads nowhere, or to another host."""
    pages = {file: _Page.read(file) for file in site.rglob("*.html")}
    for file, page in pages.items():
        for link in page.links:
            if _REMOTE.match(link):
                yield f"{file.relative_to(site)}: {link} is on another host"
                continue
            path, _, anchor = link.partition("#")
            target = Path(os.path.normpath(file.parent / path)) if path else file
            if not target.is_file():
                yield f"{file.relative_to(site)}: {link} does not exist"
            elif anchor and anchor not in pages[target].anchors:
                yield f"{file.relative_to(site)}: {link} has no such anchor"
    for file in site.rglob("*.css"):
        for url in re.findall(r"url\(\s*['\"]?((?:https?:)?//[^)'\"]+)", file.read_text("utf-8")):
            yield f"{file.relative_to(site)}: {url} is on another host"


class _Page(HTMLParser):
    """Links and anchors of a page."""

    _LINKING = ("href", "src", "srcset", "action", "data", "poster")

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = {"__skip"}

    @classmethod
    def read(cls, file: Path) -> _Page:
        page = cls()
        page.feed(file.read_text(encoding="utf-8"))
        return page

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        """Collect the links and the anchor of an element."""
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            elif name in self._LINKING and value and not value.startswith(("data:", "javascript:")):
                self.links.append(value)


def _run_zensical(work: Path, config: str) -> Path:
    """Build the staged pages strictly, and return the folder of the site."""
    for name in ("base.yml", config):
        shutil.copyfile(_HERE / name, work / name)
    shutil.copyfile(_HERE / "site.css", work / "pages" / "site.css")
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "-f", config]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"zensical failed:\n{done.stdout}{done.stderr}")
    return work / "site"


def _staged_path(file: Path) -> Path:
    """Return the place of a file of the repository among the staged pages."""
    if file.is_relative_to(DOCS):
        return file.relative_to(DOCS)
    return Path(OUTSIDE) / file.relative_to(ROOT)


def _linked_files(page: Path, text: str) -> list[Path]:
    return [target for _, link, _ in _links(text) if (target := _target(page, link)) is not None]


def _links(text: str) -> list[tuple[str, str, str]]:
    return _LINK.findall(_FENCE.sub("", text))


def _target(page: Path, link: str) -> Path | None:
    """Return the file that a link leads to; None for links inside of the page and to hosts."""
    path = link.partition("#")[0]
    if not path or ":" in path:
        return None
    target = (page.parent / path).resolve()
    target = target / "README.md" if target.is_dir() else target
    if not target.is_file():
        sys.exit(f"{page.relative_to(ROOT)}: {link} leads to no file")
    return target


def _adapt_links(page: Path, text: str) -> str:
    """Return a page whose links lead to the staged copies."""

    def adapt(match: re.Match[str]) -> str:
        target = _target(page, match[2])
        if target is None:
            return match[0]
        path = os.path.relpath(_staged_path(target), _staged_path(page).parent)
        anchor = match[2].partition("#")[2]
        return f"{match[1]}{path}{'#' if anchor else ''}{anchor}{match[3]}"

    parts, end = [], 0
    for fence in _FENCE.finditer(text):
        parts += [_LINK.sub(adapt, text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, _LINK.sub(adapt, text[end:])])


def _link_language(page: Path, language: str, target: Path) -> None:
    path = os.path.relpath(target, page.parent)
    pattern = re.compile(rf'href="[^"]*"( hreflang="?{language}"?)')
    text = page.read_text(encoding="utf-8")
    page.write_text(pattern.sub(rf'href="{path}"\1', text), encoding="utf-8")


if __name__ == "__main__":
    main()
