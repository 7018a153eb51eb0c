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


README = ROOT / "README.md"

MAKES = re.compile(r"`(?:make [\w.-]+|python -m [\w.]+[^`]*)`")
IDIOM = re.compile(
    r"\b(?:whoever|whomever|everybody|everyone|nobody|somebody|what became of|gives? (?:them|it) up|"
    r"not ours to)\b",
    re.IGNORECASE,
)
"""What the project says in plainer words: see the glossary."""

CITED_TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


def tables_of(page: Path) -> list[str]:
    """Return the tables of *page*."""
    return re.findall(r"(?:^\|.*\n)+", page.read_text("utf-8"), flags=re.MULTILINE)


def unnamed_figures(text: str) -> list[str]:
    """Return the lines of measured figures in *text* that say of no command that it makes them."""
    header, _, *rows = text.splitlines()
    if MAKES.search(header):
        return []
    return [row for row in rows if not MAKES.search(row)]


def test_the_readme_fits_on_a_few_screens() -> None:
    """A hundred and thirty lines, and no line that hides several."""
    lines = README.read_text("utf-8").splitlines()

    assert len(lines) <= 130
    assert max(map(len, lines)) <= 320


def test_each_table_of_figures_names_what_makes_it() -> None:
    """In its header, or in each of its rows."""
    tables = [table for name in ("evidence", "scaling") for table in tables_of(ROOT / "docs" / f"{name}.md")]

    found = [line for table in tables for line in unnamed_figures(table)]

    assert len(tables) == 4
    assert found == []


def test_each_figure_of_the_readme_names_what_makes_it() -> None:
    """Each item that speaks of evidence does so with a command."""
    items = re.findall(r"\*Evidence: .*?\*(?=\n|$)", README.read_text("utf-8"), flags=re.DOTALL)

    assert len(items) == 5
    for item in items[0], items[4]:
        assert MAKES.search(item), item
    assert all(MAKES.search(item) or "same runs" in item for item in items)


def test_a_figure_without_a_command_is_found() -> None:
    """In a row of a table, and in a whole table."""
    table = "| what | measured |\n| --- | --- |\n| a | 98 %, `make bench` |\n| b | 3 s |"

    assert unnamed_figures(table) == ["| b | 3 s |"]
    assert unnamed_figures(table.replace("measured", "measured by `make bench`", 1)) == []


def test_each_picture_of_a_benchmark_is_shown() -> None:
    """None is missing, none is shown twice."""
    shown = re.findall(
        r"!\[[^\]]+\]\(\.\./benchmarks/results/(\w+)\.svg\)", (ROOT / "docs" / "evidence.md").read_text("utf-8")
    )

    assert sorted(shown) == sorted(path.stem for path in (ROOT / "benchmarks" / "results").glob("*.svg"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_test_that_a_page_names_is_there(page: Path) -> None:
    """A reader who looks for the evidence finds it."""
    for name, test in CITED_TEST.findall(page.read_text("utf-8")):
        assert (ROOT / name).is_file(), name
        assert not test or re.search(
            rf"^(?:async )?def {test}\b", (ROOT / name).read_text("utf-8"), flags=re.MULTILINE
        ), test


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_speaks_plainly(page: Path) -> None:
    """Without the idiom that the glossary replaced."""
    text = page.read_text("utf-8")

    assert [match[0] for match in IDIOM.finditer(text)] == []


def test_each_page_is_reached_from_the_readme() -> None:
    """A page that nothing leads to is not read."""
    links = LINK.findall(README.read_text("utf-8"))

    assert {path.name for path in PAGES[1:]} <= {Path(link.partition("#")[0]).name for link in links}
