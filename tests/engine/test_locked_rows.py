"""A row that another session has locked: all others are filled, the site passes, and it comes last."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import models

from safemigrate.exceptions import LockNotAcquired, TooManyRetries
from safemigrate.operations import AddNullableField, AddRequiredField, Populate
from tests.engine.test_engine import LATER, NAME, POPULATES, another, fill, run
from tests.support.sandbox import MigrationSandbox, month_later, question

pytestmark = [pytest.mark.matrix, pytest.mark.parametrize("alias", ["postgresql", "mariadb"], indirect=True)]

ROWS = 300
LOCKED = "UPDATE boxes_question SET question_text = 'held' WHERE id = 150"


@pytest.fixture
def sandbox(alias: str) -> MigrationSandbox:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(ROWS)
    return sandbox


class Site(threading.Thread):
    """Holds a row until all others are filled, and changes one beside it again and again, with little patience."""

    def __init__(self, sandbox: MigrationSandbox, holder: Any, writer: Any) -> None:
        super().__init__(daemon=True)
        self.sandbox, self.holder, self.writer = sandbox, holder, writer
        self.left, self.errors, self.changes = -1, [], 0

    def run(self) -> None:
        until = time.monotonic() + 8
        while self.left != 1 and time.monotonic() < until:
            try:
                run(self.writer, "UPDATE boxes_question SET question_text = 'changed' WHERE id = 151")
                self.changes += 1
                self.left = self._left()
            except Exception as error:  # noqa: BLE001
                self.errors.append(error)
            time.sleep(0.01)
        run(self.holder, "COMMIT")

    def _left(self) -> int:
        with self.writer.cursor() as cursor:
            cursor.execute(f"SELECT count(*) FROM boxes_question WHERE {NAME} IS NULL")
            return int(cursor.fetchone()[0])


@contextmanager
def site(sandbox: MigrationSandbox) -> Iterator[Site]:
    with another(sandbox.alias) as holder, another(sandbox.alias) as writer:
        holder.set_autocommit(False)
        run(holder, LOCKED)
        limit = "lock_timeout = '1s'" if writer.vendor == "postgresql" else "innodb_lock_wait_timeout = 1"
        run(writer, f"SET {limit}")
        thread = Site(sandbox, holder, writer)
        thread.start()
        yield thread
        thread.join(20)


@pytest.mark.parametrize("populate", POPULATES.values(), ids=list(POPULATES))
@pytest.mark.parametrize("workers", [1, 3])
def test_all_others_are_filled_and_nobody_waits(
    sandbox: MigrationSandbox, populate: Any, workers: int, settings: Any
) -> None:
    settings.SAFEMIGRATE_WORKERS, settings.SAFEMIGRATE_LOCK_PAUSE = workers, 0.05
    sandbox.run(AddNullableField("question", NAME, models.DateTimeField()))
    with site(sandbox) as others:
        done = fill(sandbox, populate, batch_size=ROWS // workers)
    assert others.errors == []
    assert (others.left, done.rows, done.bad) == (1, ROWS, [])
    assert others.changes > 1
    assert month_later(sandbox.rows())
    assert sandbox.rows().get(pk=150).question_text == "held"


def test_fields_that_are_rewritten_along(sandbox: MigrationSandbox, settings: Any) -> None:
    settings.SAFEMIGRATE_LOCK_PAUSE = 0.05
    sandbox.run(AddNullableField("question", NAME, models.DateTimeField()))
    with site(sandbox) as others:
        sandbox.run(
            Populate(
                "question",
                [NAME, "question_text"],
                lambda row: {NAME: POPULATES["in Python"](row), "question_text": f"{row.question_text}!"},
                batch_size=ROWS,
            )
        )
    assert (others.errors, others.left) == ([], 1)
    assert month_later(sandbox.rows())
    assert sandbox.rows().get(pk=150).question_text == "held!"


def test_the_whole_operation(sandbox: MigrationSandbox, settings: Any) -> None:
    """A row is held from the end of the first fill on, and let go while NOT NULL waits for its lock."""
    settings.SAFEMIGRATE_LOCK_PAUSE, settings.SAFEMIGRATE_LOCK_TRIES = 0.05, 200
    field = models.DateTimeField()
    operation = AddRequiredField("question", NAME, field, LATER, batch_size=ROWS)
    with another(sandbox.alias) as holder:
        holder.set_autocommit(False)
        release = threading.Timer(1.5, lambda: run(holder, "COMMIT"))
        release.start()
        run(holder, "SELECT 1")
        sandbox.run(operation)
        release.join()
    assert month_later(sandbox.rows())
    assert not sandbox.column(NAME).nullable


def test_a_row_that_stays_locked_is_named_and_all_others_are_filled(
    sandbox: MigrationSandbox, settings: Any
) -> None:
    settings.SAFEMIGRATE_LOCK_TRIES, settings.SAFEMIGRATE_LOCK_PAUSE = 3, 0.01
    sandbox.run(AddNullableField("question", NAME, models.DateTimeField()))
    with another(sandbox.alias) as holder:
        holder.set_autocommit(False)
        run(holder, LOCKED)
        with pytest.raises(TooManyRetries) as caught:
            fill(sandbox)
        assert sandbox.rows().filter(**{f"{NAME}__isnull": True}).count() == 1
    text = str(caught.value)
    assert "1 rows are locked by other sessions; blocked by: " in text
    assert "the first keys: 150. All other rows are filled." in text
    assert not isinstance(caught.value, LockNotAcquired)
    assert fill(sandbox).rows == 1
    assert month_later(sandbox.rows())


def test_of_a_composite_key(alias: str, settings: Any) -> None:
    settings.SAFEMIGRATE_LOCK_PAUSE = 0.05
    fields = [("tenant", models.IntegerField()), ("code", models.IntegerField())]
    key = ("pk", models.CompositePrimaryKey("tenant", "code"))
    sandbox = MigrationSandbox(alias, question(key=key, fields=fields))
    sandbox.fill(60, tenant=lambda n: n % 3, code=lambda n: n)
    sandbox.run(AddNullableField("question", NAME, models.DateTimeField()))
    with another(alias) as holder:
        holder.set_autocommit(False)
        run(holder, "UPDATE boxes_question SET question_text = 'held' WHERE tenant = 1 AND code IN (1, 22)")
        release = threading.Timer(0.5, lambda: run(holder, "COMMIT"))
        release.start()
        done = fill(sandbox, LATER)
        release.join()
    assert (done.rows, done.bad) == (60, [])
    assert month_later(sandbox.rows())
