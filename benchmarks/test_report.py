"""The report that every benchmark prints and keeps."""

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from benchmarks.report import Line, Report, number


def a_report() -> Report:
    """Return a report with a line of each kind."""
    report = Report("rate", "Rate & share", {"recipients": 200_000}, baseline="a <plain> loop")
    report.add("fast", 0.991, "of the limit", baseline=0.12, at_least=0.98)
    report.add("too much", 70.25, "MB", at_most=60)
    report.add("without a goal", 3_000_000, "rows")
    return report


def test_a_goal_is_a_floor_or_a_ceiling() -> None:
    """A line says itself whether its goal is met."""
    assert Line("", 0.98, "", at_least=0.98).met
    assert Line("", 0.97, "", at_least=0.98).met is False
    assert Line("", 60, "", at_most=60).met
    assert Line("", 61, "", at_most=60).met is False
    assert Line("", 61, "").met is None


def test_lines_are_printed_as_they_come(capsys: pytest.CaptureFixture[str]) -> None:
    """Who waits for a long benchmark sees each figure at once, with machine and versions first."""
    a_report()

    head, setting, compared, fast, much, bare = capsys.readouterr().out.strip().splitlines()
    assert head == "Rate & share"
    assert "recipients 200000" in setting
    assert "Python" in setting
    assert "apache-airflow" in setting
    assert compared == "compared with a <plain> loop"
    assert "8.26 x 0.120" in fast
    assert fast.endswith("goal: at least 0.980")
    assert much.endswith("goal: at most 60, MISSED")
    assert bare.endswith("3,000,000 rows")


def test_it_is_kept_with_machine_settings_and_verdicts(tmp_path: Path) -> None:
    """The JSON can be compared with that of another day."""
    a_report().write(tmp_path)

    kept = json.loads((tmp_path / "rate.json").read_text())
    assert kept["settings"] == {"recipients": 200_000}
    assert kept["machine"]["Python"]
    assert [line["met"] for line in kept["lines"]] == [True, False, None]
    assert kept["lines"][0]["ratio"] == pytest.approx(8.258, abs=0.001)


def test_its_picture_shows_every_line(tmp_path: Path) -> None:
    """The SVG is well-formed, whatever the names are."""
    a_report().write(tmp_path)

    picture = ET.parse(tmp_path / "rate.svg").getroot()  # noqa: S314 -- our own
    texts = ["".join(text.itertext()) for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert "Rate & share" in texts
    assert {"fast", "too much", "without a goal", "0.991 of the limit (8.26 x)", "70.2 MB"} <= set(texts)


def test_a_bar_far_beyond_its_goal_is_cut_off(tmp_path: Path) -> None:
    """One long bar does not flatten the others."""
    report = Report("far", "Far", {})
    report.add("far", 1_000, "s", at_most=1)
    report.write(tmp_path)

    picture = ET.parse(tmp_path / "far.svg").getroot()  # noqa: S314 -- our own
    width = float(picture.attrib["width"])
    ends = [
        float(bar.attrib.get("x", 0)) + float(bar.attrib["width"])
        for bar in picture.iter("{http://www.w3.org/2000/svg}rect")
    ]
    assert max(ends) <= width


@pytest.mark.parametrize(
    ("value", "told"), [(0, "0"), (0.25, "0.250"), (12.34, "12.3"), (1234.5, "1,234"), (5_000_000, "5,000,000")]
)
def test_a_figure_has_as_many_digits_as_help(value: float, told: str) -> None:
    """No more digits than mean something."""
    assert number(value) == told
