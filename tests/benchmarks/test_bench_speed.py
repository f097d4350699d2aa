"""The benchmark of speed measures what it says, sees a wrong value, and its page shows what was measured."""

from __future__ import annotations

import os
import re
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from django.db import connections
from pytest_django import DjangoDbBlocker

from benchmarks import pages, speed, stages
from benchmarks.figures import GAP, Figures
from benchmarks.growth import Growth
from benchmarks.meters import Transactions, forget_peak, peak
from benchmarks.methods import METHODS
from benchmarks.places import WAL, OnMariaDB, OnPostgreSQL, OnSQLite, Place
from benchmarks.plot import plot
from benchmarks.promises import PROMISES, Measured
from benchmarks.seeds import TABLE
from benchmarks.sites import connect
from benchmarks.tables import Shape
from benchmarks.values import PICKED, SLUG, VALUES, Value
from tests.conftest import missing

ROWS = 2_000
DRIVERS = {"postgresql": "psycopg2", "mysql": ("pymysql", "MySQLdb"), "sqlite": "sqlite3.dbapi2"}


@pytest.fixture(params=["postgresql", "postgresql_old", "mariadb", "sqlite", "sqlite-wal"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, django_db_blocker: DjangoDbBlocker
) -> Iterator[Place]:
    """A database to measure, on the tests' own servers."""
    with django_db_blocker.unblock():
        opened = open_place(request.param, tmp_path)
        yield opened
        opened.clear()


def open_place(kind: str, folder: Path) -> Place:
    if kind.startswith("sqlite"):
        return OnSQLite(folder, WAL if kind == "sqlite-wal" else "")
    url = os.environ.get(f"SAFEMIGRATE_TEST_{kind.upper()}") or pytest.skip(missing(kind))
    return OnMariaDB(url) if kind == "mariadb" else OnPostgreSQL(url, "psycopg2")


@pytest.mark.slow
def test_each_kind_of_method_is_measured_on_a_copy_of_its_own(place: Place) -> None:
    with closing(connect(place.fresh(Shape(ROWS)))) as connection:
        vendor = connection.vendor
    for name in ("update", "row", "own_uuid", "bulk_update", "set_not_null", "operation", "operation_0"):
        done = place.measure(name, METHODS[name].shaped(ROWS))
        assert "error" not in done, done["error"]
        assert done["wrong"] == 0
        assert done["rows"] == {"bulk_update": 1_000, "operation_0": 0}.get(name, ROWS)
        assert done["seconds"] > 0
        assert done["longest"] > 0
        assert 0 <= done["memory"] < 100_000_000
        assert done["size"] > done["rows"] * 76
        assert done["driver"] in DRIVERS[vendor]
        assert (done["log"] is None) == (vendor == "sqlite")
        if vendor == "postgresql":
            assert (done["exclusive"] > 0) == METHODS[name].required


@pytest.mark.slow
def test_tables_of_every_shape_are_measured(place: Place) -> None:
    for shape in (Shape(ROWS, key="uuid"), Shape(ROWS, key="composite", indexes=0), Shape(ROWS, indexes=5)):
        done = place.measure("row", shape)
        assert "error" not in done, done["error"]
        assert (done["rows"], done["wrong"]) == (ROWS, 0)
        place.clear()


@pytest.mark.slow
def test_a_wrong_value_is_seen(place: Place) -> None:
    url = place.fresh(Shape(20, related=True))
    with closing(connect(url)) as connection, connection.cursor() as cursor:
        for kind, value in VALUES.items():
            column = value.name
            cursor.execute(f"ALTER TABLE {TABLE} ADD COLUMN {column} {value.field.db_type(connection)} NULL")
            assert value.count_wrong(connection) == 20, kind
            cursor.execute(right(kind, value, connection.vendor))
            assert value.count_wrong(connection) == 0, kind
            cursor.execute(f"UPDATE {TABLE} SET {column} = NULL WHERE id IN (3, 7)")
            assert value.count_wrong(connection) == 2, kind
            if value.distinct:
                cursor.execute(f"SELECT {column} FROM {TABLE} WHERE id = 1")
                cursor.execute(f"UPDATE {TABLE} SET {column} = %s WHERE id IN (3, 7)", cursor.fetchone())
                assert value.count_wrong(connection) == 2, kind
            cursor.execute(f"ALTER TABLE {TABLE} DROP COLUMN {column}")


def right(kind: str, value: Value, vendor: str) -> str:
    sql = {"slug": SLUG, "picked": PICKED}.get(kind, value.update)[vendor]
    return f"UPDATE {TABLE} SET {value.name} = {sql}"


class TestMeters:
    def test_the_longest_transaction_goes_from_begin_to_commit(self, alias: str) -> None:
        with (
            closing(Transactions()) as transactions,
            closing(connections.create_connection(alias)) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute("CREATE TABLE metered (id integer)")
            one_statement = transactions.longest
            connection.set_autocommit(False)
            cursor.execute("SELECT 1")
            cursor.fetchall()
            time.sleep(0.3)
            connection.commit()
        assert one_statement > 0
        assert 0.3 < transactions.longest < 5

    @pytest.mark.parametrize("alias", ["postgresql"], indirect=True)
    def test_a_table_is_held_alone_from_the_alter_to_the_commit(self, alias: str) -> None:
        with (
            closing(Transactions()) as transactions,
            closing(connections.create_connection(alias)) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute("CREATE TABLE metered (id integer)")
            cursor.execute("ALTER TABLE metered ADD CONSTRAINT few CHECK (id < 9) NOT VALID")
            one_statement = transactions.exclusive
            connection.set_autocommit(False)
            cursor.execute("ALTER TABLE metered VALIDATE CONSTRAINT few")
            time.sleep(0.3)
            connection.commit()
            assert transactions.exclusive == one_statement > 0
            connection.set_autocommit(False)
            cursor.execute("ALTER TABLE metered ALTER COLUMN id SET NOT NULL")
            time.sleep(0.3)
            connection.commit()
        assert 0.3 < transactions.exclusive < 5

    def test_the_peak_is_that_of_what_ran_since(self) -> None:
        allocate(200)
        forget_peak()
        base = peak()
        allocate(50)
        assert 45 < (peak() - base) / 1_000_000 < 150


def allocate(megabytes: int) -> None:
    assert b"x" * (megabytes * 1_000_000)


def outcome(seconds: float, **more: Any) -> dict[str, Any]:
    return {"seconds": seconds, "rows": 1_000, "memory": 0, "log": None, "size": 1, "longest": 0.1} | more


MACHINE = {
    "database": "SQLite 3.45",
    "driver": "sqlite3",
    "django": "5.2",
    "python": "3.13",
    "system": "Linux",
    "cores": 2,
    "load": 0.1,
    "date": "2026-01-01",
}


def measured(**methods: list[dict[str, Any]]) -> dict[str, Any]:
    rounds = [dict(zip(methods, each, strict=True)) for each in zip(*methods.values(), strict=True)]
    return {"title": "SQLite", "machine": MACHINE, "rows": 1_000, "command": "make bench", "rounds": rounds}


class TestReport:
    @pytest.fixture(autouse=True)
    def folders(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pages, "KEPT", tmp_path / "kept")
        monkeypatch.setattr(speed, "RAW", tmp_path / "raw")

    @pytest.mark.parametrize("bad", [{"wrong": 3}, {"error": "OperationalError: no"}])
    def test_what_went_wrong_is_said_and_not_kept(self, bad: dict[str, Any]) -> None:
        data = measured(update=[outcome(1.0)], row=[outcome(2.0, **bad)])
        assert not speed.report("sqlite", data, Namespace(page=True))
        assert not pages.KEPT.exists()
        assert "**3 wrong rows**" in Figures(data).section() or "failed" in Figures(data).section()

    def test_what_went_well_is_kept_as_it_was_shown(self) -> None:
        data = measured(update=[outcome(1.0)], row=[outcome(2.0)])
        assert speed.report("sqlite", data, Namespace(page=True))
        known = pages.kept(pages.KEPT)["sqlite"].speed
        assert known
        assert known.section() == Figures(data).section()


class TestFigures:
    def test_a_ratio_is_the_median_of_those_within_a_round(self) -> None:
        update = [outcome(1.0), outcome(2.0), outcome(4.0)]
        row = [outcome(2.0), outcome(2.0), outcome(12.0)]
        found = Figures(measured(update=update, row=row))
        assert found.ratios("row", "update") == [2.0, 1.0, 3.0]
        assert "| 2.00 (1.00–3.00) |" in found.section()  # noqa: RUF001

    def test_a_part_of_the_rows_is_compared_by_the_row(self) -> None:
        found = Figures(measured(update=[outcome(1.0)], loop=[outcome(1.0, rows=100)]))
        assert found.ratio("loop", "update") == 10
        assert "a loop of `save()` (100 rows)" in found.section()

    def test_a_promise_that_is_missed_is_bold(self) -> None:
        promise = next(each for each in PROMISES if each.title.startswith("A function of one row, to one"))
        cells = [
            promise.cell(
                "postgresql", Measured(Figures(measured(update=[outcome(1.0)], row=[outcome(time)])))
            )
            for time in (1.5, 3.0)
        ]
        assert cells == [f"1.50 (≤{GAP}1.9)", f"**3.00** (≤{GAP}1.9)"]

    def test_growth_is_flat_where_a_row_costs_the_same(self) -> None:
        cases = [
            {"title": "few", "grows": True, "outcomes": {"row": [outcome(1.0)]}},
            {"title": "many", "grows": True, "outcomes": {"row": [outcome(12.0, rows=10_000)]}},
            {"title": "indexed", "grows": False, "outcomes": {"row": [outcome(9.0)]}},
        ]
        growth = Growth({"title": "", "machine": MACHINE, "command": "make bench-scale", "cases": cases})
        assert growth.flatness("row") == pytest.approx(1.2)


def test_each_method_is_compared_with_one_that_is_measured_where_it_is() -> None:
    for name, method in METHODS.items():
        base = METHODS[method.base]
        assert set(method.vendors) <= set(base.vendors), name
        assert base.everywhere or not method.everywhere, name
        assert base.kind == method.kind or method.base == "update_text", name


def test_the_page_shows_methods_that_are_measured_each_with_its_base() -> None:
    assert {METHODS[name].base for name in pages.COMPARED} <= set(pages.COMPARED) <= set(METHODS)


def test_the_stages_have_their_place() -> None:
    assert re.findall("<!-- figures: (.*) -->", stages.PAGE.read_text(encoding="utf-8")) == ["stages"]


def test_the_page_shows_what_was_measured() -> None:
    page = pages.PAGE.read_text(encoding="utf-8")
    known = pages.kept()
    for mark, text in pages.sections(known):
        assert f"<!-- figures: {mark} -->\n\n{text}\n\n<!-- end -->" in page
    marks = re.findall("<!-- figures: (.*) -->", page)
    assert sorted(marks) == sorted(mark for mark, _ in pages.sections(known))
    assert pages.EVERYTHING.read_text(encoding="utf-8") == pages.everything(known)
    drawn = plot([each.speed for each in known.values() if each.speed])
    assert pages.PICTURE.read_text(encoding="utf-8") == drawn
