"""The pages of the project: links that lead somewhere, and no word of what is not here."""

import re
from pathlib import Path

import pytest

from tests.support.files import ROOT, tracked

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

LINK = re.compile(r"\]\(([^)\s]+)\)")
CITED_PAGE = re.compile(r"[\w./-]*\w\.md\b")
CITED_HEADING = re.compile(r"docs/([\w-]+\.md), ([A-Z][\w ']*?)[.,:;)\"]")
ABSENT = re.compile(r"\b(HAERR|HAPOLL\w*|HAASYNC\w*|HAPUSH|AMPOLL|APUSH|CXA[13]|NOCK|PHPCERT)\b|style guide|/wor[k]/\w")
"""Keys of sources, and documents, that are known to stand outside of the repository."""

SUFFIXES = frozenset({".cfg", ".json", ".md", ".py", ".toml", ".txt", ".yml"})


def headings(page: Path) -> dict[str, str]:
    """Return the headings of *page* by the anchors that GitHub gives them."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ +(.+?) *$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-"): title for title in titles}


def broken_links(page: Path) -> list[str]:
    """Return the relative links of *page* that lead to no file, or to no heading."""
    broken = []
    for link in LINK.findall(page.read_text("utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in headings(target)):
            broken.append(link)
    return broken


def absent_citations(path: Path) -> list[str]:
    """Return what *path* cites and the repository lacks: pages, headings of pages, and keys of other documents."""
    text = path.read_text("utf-8")
    pages = [
        name
        for name in CITED_PAGE.findall(text)
        if not any(
            (base / name.lstrip("/")).is_file() for base in (ROOT, ROOT / "airflow_provider_responsys", path.parent)
        )
    ]
    titles = [
        f"{name}, {title}"
        for name, title in CITED_HEADING.findall(text)
        if not (ROOT / "docs" / name).is_file() or title not in headings(ROOT / "docs" / name).values()
    ]
    return [*pages, *titles, *(match[0] for match in ABSENT.finditer(text))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    """A reader who follows a link arrives."""
    assert broken_links(page) == []


def test_no_file_cites_a_document_that_is_not_here() -> None:
    """The project stands alone."""
    texts = [path for path in tracked() if path.suffix in SUFFIXES and path != Path(__file__)]

    found = {str(path.relative_to(ROOT)): cited for path in texts if (cited := absent_citations(path))}

    assert found == {}


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    """A missing file, a missing heading of another page and of the page itself."""
    (tmp_path / "other.md").write_text("# One\n## Two words\n", "utf-8")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](no.md) [b](other.md#none) [c](#none) [d](other.md#two-words) [e](https://x.test/no)\n", "utf-8"
    )

    assert broken_links(page) == ["no.md", "other.md#none", "#none"]


@pytest.mark.parametrize("cited", ["gone.md", "HAERR", "docs/glossary.md, Nowhere."])
def test_a_citation_of_what_is_absent_is_found(tmp_path: Path, cited: str) -> None:
    """By the name of a page, by the key of a source, by a heading."""
    path = tmp_path / "module.py"
    path.write_text(f"# {cited}\n# docs/glossary.md, Waiting.\n", "utf-8")

    assert absent_citations(path)
