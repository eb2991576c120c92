"""The site: links between its pages, nothing from other hosts, both languages."""

from __future__ import annotations

from pathlib import Path

import pytest

from website import build


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        file = folder / name.replace("__", "/").replace("_html", ".html").replace("_css", ".css")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def test_a_site_whose_links_lead_somewhere_has_no_problems(tmp_path: Path) -> None:
    site = write(
        tmp_path,
        index_html='<a href="zh/index.html#top">x</a><a href="#here" id="here">y</a>',
        zh__index_html='<h1 id="top"><img src="data:image/png;base64,AA"><a href="../index.html">',
    )
    assert list(build.site_problems(site)) == []


@pytest.mark.parametrize(
    ("link", "problem"),
    [
        ('<a href="none.html">', "none.html does not exist"),
        ('<a href="#nowhere">', "#nowhere has no such anchor"),
        ('<script src="https://example.com/a.js"></script>', "on another host"),
        ('<link href="//fonts.example.com/a.css">', "on another host"),
    ],
)
def test_a_link_that_leads_nowhere_or_elsewhere_is_a_problem(
    tmp_path: Path, link: str, problem: str
) -> None:
    (found,) = build.site_problems(write(tmp_path, index_html=link))
    assert problem in found


def test_a_style_sheet_that_loads_from_another_host_is_a_problem(tmp_path: Path) -> None:
    site = write(tmp_path, a_css="body { background: url('https://example.com/a.png') }")
    assert "example.com" in next(build.site_problems(site))


def test_the_language_switch_leads_to_the_same_page(tmp_path: Path) -> None:
    switch = '<a href="x.html" hreflang="en"></a><a href="y.html" hreflang="zh"></a>'
    site = write(tmp_path, recipes__a_html=switch, zh__recipes__a_html=switch)
    build.link_languages(site)
    assert 'href="../zh/recipes/a.html" hreflang="zh"' in (site / "recipes/a.html").read_text()
    assert 'href="../../recipes/a.html" hreflang="en"' in (site / "zh/recipes/a.html").read_text()


def test_files_outside_of_docs_are_staged_and_linked(tmp_path: Path) -> None:
    build.stage(tmp_path)
    concepts = (tmp_path / "concepts.md").read_text()
    assert "](repository/SECURITY.md)" in concepts
    assert (tmp_path / "repository/SECURITY.md").is_file()
    assert "](repository/examples/ci/README.md)" not in concepts


def test_the_site_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("zensical", reason="`make docs` installs it, and builds the site")
    monkeypatch.setattr(build, "SITE", tmp_path / "site")
    build.main()
    assert (tmp_path / "site/zh/index.html").is_file()
