"""The documentation is in step with the code: links, paths, commands and YAML blocks are valid."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from cli import app
from compressor.config.document import parse_document
from compressor.engine.plan.pipeline import pipeline_from_document
from compressor.runtimes.formats import installed_formats

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE_PATH = re.compile(
    r"`((?:compressor|passes|calibration|tests|examples|benchmarks|website)/[\w./-]+)`"
)
OLD_MODULES = "0013-rooms-formats-capabilities.md"
"""The page that maps old modules to new ones: it names paths that no longer exist."""
REST_OF_A_PIPELINE = {
    "version": 1,
    "name": "docs",
    "model": {"family": "image-classifier", "preset": "tiny"},
}
RECIPES = ROOT / "docs" / "extending"
"""Pages whose commands and pipelines need a plugin: test_recipes.py runs them."""
OTHER_NAMES = {"ptq", "weight-only"}
"""Second names of passes."""
CHINESE = ROOT / "docs" / "zh"


def page_name(page: Path) -> str:
    """Return the path of a page in the repository, as the id of its tests."""
    return str(page.relative_to(ROOT))


by_page = pytest.mark.parametrize("page", PAGES, ids=page_name)
by_page_without_plugin = pytest.mark.parametrize(
    "page", [page for page in PAGES if RECIPES not in page.parents], ids=page_name
)


def code_blocks(page: Path, languages: set[str]) -> list[str]:
    """Return the fenced code blocks of a page whose language is one of ``languages``."""
    blocks = re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [text for language, text in blocks if language in languages]


def shell_lines(page: Path) -> list[str]:
    """Return the commands of a page's shell blocks, with continuation lines joined."""
    blocks = code_blocks(page, {"", "sh", "bash", "console"})
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def anchors(page: Path) -> set[str]:
    """Return the anchors that a Markdown renderer generates for the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    cleaned = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in cleaned}


@pytest.mark.parametrize(
    "page", ["README.md", "README.zh.md", "docs/concepts.md", "docs/zh/concepts.md"]
)
def test_the_overviews_name_every_pass_and_the_concepts_every_format(page: str) -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = config["project"]["entry-points"]
    names = {*groups["autoglm_compress.passes"]} - OTHER_NAMES
    if "concepts" in page:
        names |= {
            f.name for f in installed_formats() if type(f).__module__.startswith("compressor.")
        }
    else:
        names -= {"train"}
    text = (ROOT / page).read_text()
    assert not [name for name in sorted(names) if f"`{name}`" not in text]


@by_page
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@by_page
def test_every_path_in_code_font_exists(page: Path) -> None:
    if page.name == OLD_MODULES:
        return
    paths = CODE_PATH.findall(page.read_text())
    assert [path for path in paths if "fetched" not in path and not (ROOT / path).exists()] == []


def test_every_new_place_in_the_map_of_modules_exists() -> None:
    table = (ROOT / "docs/decisions" / OLD_MODULES).read_text().partition("| old | new |")[2]
    cells = re.findall(r"^\| .* \| (.*) \|$", table, re.MULTILINE)
    modules = [module for cell in cells for module in re.findall(r"`([\w/]+)\*?`", cell)]
    assert len(modules) > 100
    places = [(ROOT / module, ROOT / f"{module}.py") for module in modules]
    assert [str(path) for path, file in places if not (path.is_dir() or file.is_file())] == []


@by_page_without_plugin
def test_every_command_of_a_shell_block_parses(page: Path) -> None:
    for line in shell_lines(page):
        words = shlex.split(line.split(" > ")[0], comments=True)
        if words[:1] == ["python"] and words[1].endswith(".py"):
            is_on_page = f'title="{words[1]}"' in page.read_text()
            assert is_on_page or (ROOT / words[1]).is_file(), line
        if words[:1] != ["autoglm-compress"] or len(words) == 1 or words[1].isupper():
            continue
        command: Any = typer.main.get_command(app)
        arguments = words[1:]
        while arguments and arguments[0] in getattr(command, "commands", {}):
            command = command.commands[arguments.pop(0)]
        is_group = hasattr(command, "commands")
        assert not (is_group and arguments and not arguments[0].startswith("-")), line
        command.make_context("autoglm-compress", arguments)


@by_page_without_plugin
def test_every_yaml_block_of_a_pipeline_is_valid(page: Path) -> None:
    for block in code_blocks(page, {"yaml"}):
        tree = yaml.safe_load(block)
        if isinstance(tree, list):  # some steps
            tree = {"passes": tree}
        if isinstance(tree, dict) and tree.keys() & {"passes", "gates"}:
            whole = {**REST_OF_A_PIPELINE, **tree}
            pipeline_from_document(parse_document(json.dumps(whole).encode()))


def code_without_comments(page: Path) -> list[str]:
    """Return all code blocks of a page, with their first lines and without comments."""
    blocks = re.findall(r"^```.*?^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [re.sub(r"\s*(?:^|\s)#.*$", "", block, flags=re.MULTILINE) for block in blocks]


@pytest.mark.parametrize("page", sorted(CHINESE.rglob("*.md")), ids=page_name)
def test_a_chinese_page_has_the_code_blocks_of_the_english_one(page: Path) -> None:
    english = ROOT / "docs" / page.relative_to(CHINESE)
    assert code_without_comments(page) == code_without_comments(english)


def test_quickstart_concepts_recipes_and_troubleshooting_are_in_chinese() -> None:
    recipes = (ROOT / "docs" / "recipes").glob("*.md")
    whole = [page for page in recipes if 'title="pipeline.yaml"' in page.read_text()]
    names = ["README.md", "quickstart.md", "concepts.md", "troubleshooting.md", "recipes/README.md"]
    names += [f"recipes/{page.name}" for page in whole]
    assert [name for name in names if not (CHINESE / name).is_file()] == []


@pytest.mark.parametrize("page", sorted(CHINESE.rglob("*.md")), ids=page_name)
def test_a_chinese_paragraph_is_one_line(page: Path) -> None:
    """A renderer shows a line break between two Chinese characters as a space."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert (
        re.findall(r"^[^|\n].*[\u3000-\u9fff\uff00-\uffef]\n[\u3000-\u9fff].*$", text, re.MULTILINE)
        == []
    )


def test_the_navigation_has_every_page() -> None:
    for config, folder in (("mkdocs.yml", ROOT / "docs"), ("mkdocs.zh.yml", CHINESE)):
        text = (ROOT / "website" / config).read_text()
        linked = set(re.findall(r": ([\w/.-]+\.md)$", text, re.MULTILINE))
        pages = {str(page.relative_to(ROOT / "docs")) for page in folder.rglob("*.md")}
        if folder != CHINESE:
            pages = {name for name in pages if not name.startswith(("zh/", "decisions/0"))}
        assert sorted(pages - linked) == [], config


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
