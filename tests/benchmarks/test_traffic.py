"""Under the traffic of old code: what is promised for our operations, and what the naive migration does.

Only facts are held here; for percentiles, and tables of the size promised, see `make bench-traffic`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from pytest_django import DjangoDbBlocker

from benchmarks import obstacles, runs
from benchmarks.obstacles import NotInTheWay
from benchmarks.runs import Run
from tests.conftest import IN_CI, missing
from tools.servers import MissingServer, PostgreSQL

pytestmark = [pytest.mark.slow, pytest.mark.matrix]

ROWS = {
    "postgresql": 300_000 if IN_CI else 100_000,
    "postgresql_old": 100_000,
    "mariadb": 100_000 if IN_CI else 30_000,
}
FEW_ROWS = 20_000  # where the size of the table is not the point
LOOP_ROWS = 5_000

Runner = Callable[..., Run]


@pytest.fixture
def run(kind: str, django_db_blocker: DjangoDbBlocker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runner]:
    url = os.environ.get(f"SAFEMIGRATE_TEST_{kind.upper()}") or pytest.skip(missing(kind))

    def until_blocking(name: str, rows: int = ROWS[kind]) -> Run:
        """On a busy machine `migrate` may begin when what was to be in its way is gone: that says nothing."""
        for seconds in (5, 10, 20):
            monkeypatch.setattr(obstacles, "READER_SECONDS", seconds)
            with suppress(NotInTheWay):
                return runs.run(url, name, rows)
        return runs.run(url, name, rows)

    with django_db_blocker.unblock():
        yield until_blocking


def assert_nobody_noticed(run: Run) -> None:
    assert run.error is None
    assert not run.failures
    assert max(run.waits) < 1
    assert {request["kind"] for request in run.requests} == {"select", "update", "insert"}


@pytest.mark.parametrize("kind", ROWS)
class TestNobodyNotices:
    @pytest.mark.parametrize("name", ["keep_guard", "phases"])
    def test_no_request_fails_or_waits_for_a_second(self, run: Runner, name: str) -> None:
        done = run(name)
        assert_nobody_noticed(done)
        assert done.wrong_rows == 0

    @pytest.mark.parametrize("name", ["row_lock", "require", "require_row_lock"])
    def test_nor_beside_a_locked_row_nor_where_old_code_writes_null(self, run: Runner, name: str) -> None:
        done = run(name, FEW_ROWS)
        assert_nobody_noticed(done)
        assert done.wrong_rows == 0

    def test_nor_behind_a_reader_that_stays_for_long(self, run: Runner) -> None:
        done = run("reader", FEW_ROWS)
        assert_nobody_noticed(done)
        assert done.wrong_rows == 0


def test_an_autovacuum_gives_way(django_db_blocker: DjangoDbBlocker) -> None:
    try:
        server = PostgreSQL()  # its own: the autovacuum of other tests is not to be changed
    except MissingServer as reason:
        pytest.skip(str(reason))
    with server, django_db_blocker.unblock():
        done = runs.run(server.url, "autovacuum", FEW_ROWS)
    assert_nobody_noticed(done)
    assert done.wrong_rows == 0


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
class TestContrast:
    def test_a_guard_that_is_not_kept_lets_old_code_fail_at_the_end(self, run: Runner) -> None:
        assert_only_inserts_fail(run("plain", FEW_ROWS))

    @pytest.mark.parametrize(
        ("name", "rows"),
        [
            ("update_atomic", FEW_ROWS),
            ("loop_atomic", LOOP_ROWS),
            ("update", FEW_ROWS),
            ("loop", LOOP_ROWS),
        ],
    )
    def test_the_naive_migration_fails_itself_or_old_code(
        self, run: Runner, kind: str, name: str, rows: int
    ) -> None:
        done = run(name, rows)
        if name.endswith("atomic") and kind != "mariadb":  # where ALTER TABLE cannot be in a transaction
            assert_only_inserts_fail(done)
        else:  # it is too late for the one or for the other: for AlterField, if a NULL came in before it
            assert done.error or done.failures

    def test_one_that_waits_for_a_reader_makes_all_wait(self, run: Runner) -> None:
        done = run("reader_naive", FEW_ROWS)
        assert done.error is None
        assert max(done.waits) > 1


def assert_only_inserts_fail(run: Run) -> None:
    assert run.error is None
    assert run.failures
    assert {request["kind"] for request in run.requests if request["error"]} == {"insert"}
    assert all("expires_date" in error for error in run.failures)
