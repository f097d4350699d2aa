"""The page about traffic shows what was kept of the figures, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks import report
from benchmarks.traffic import SERVERS


def sections(page: Path) -> dict[str, str]:
    """The texts between the marks of a page, by the names of their marks."""
    found = re.findall(
        r"<!-- figures: (\w+) -->\n\n(.*?)\n\n<!-- end -->", page.read_text(encoding="utf-8"), re.DOTALL
    )
    return dict(found)


def test_the_page_shows_some_columns_of_what_was_measured() -> None:
    known = sections(report.DETAILS)
    assert set(known) == set(SERVERS)
    assert sections(report.PAGE) == {vendor: report.brief(text) for vendor, text in known.items()}


def test_every_row_is_shown_with_its_own_figures() -> None:
    rows = [[*"abcdefgh"], [*"ijklmnop"]]
    text = f"How.\n\n{report.markdown(report.HEADER, rows, texts=2)}\n\nWhat failed:\n\n- a: `Error`"
    about, table = report.brief(text).split("\n\n")
    assert about == "How."
    assert table == report.markdown(report.SHOWN, [[*"abdef"], [*"ijlmn"]], texts=2)
