"""A full table of polls, and real `migrate` processes on it that may be killed: by the test, or by themselves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Any, ClassVar

from django.apps import apps
from django.core.management import call_command, execute_from_command_line
from django.db import connections
from django.db.migrations.recorder import MigrationRecorder
from django.db.models import F

from safemigrate.backends import for_connection
from tests.support import common_value_migrations

TABLE = "polls_question"
COLUMNS = ["id", "question_text", "pub_date", "vote_count", "url_name"]
MONTH = timedelta(days=30)
KILL_AT, KILL_AFTER = "SAFEMIGRATE_TEST_KILL_AT", "SAFEMIGRATE_TEST_KILL_AFTER"
#: Where a process finds the migrations of polls, if not in its app.
MIGRATIONS = "SAFEMIGRATE_TEST_MIGRATIONS"

# Keys with gaps, as after deletions.
SEEDS = {
    "postgresql": (
        "INSERT INTO polls_question (id, question_text, pub_date) SELECT 3 * n, 'Question ' || n || '?', "
        "timestamptz '2026-01-01 12:00+00' + n * interval '1 second' FROM generate_series(1, {rows}) AS n"
    ),
    "mysql": (
        "INSERT INTO polls_question (id, question_text, pub_date) SELECT 3 * seq, concat('Question ', seq, '?'), "
        "timestamp '2026-01-01 12:00' + INTERVAL seq second FROM ({numbers}) AS s WHERE seq <= {rows} ORDER BY seq"
    ),
    "sqlite": (
        "INSERT INTO polls_question (id, question_text, pub_date) "
        "WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {rows}) "
        "SELECT 3 * n, 'Question ' || n || '?', datetime('2026-01-01 12:00', n || ' seconds') FROM s"
    ),
}


def numbers(most: int) -> str:
    """Return the SQL that gives the numbers from 1 on, up to `most` and more, as MariaDB and MySQL both have it."""
    digits = " UNION ALL ".join(f"SELECT {digit} AS n" for digit in range(10))
    places = range(len(str(most)))
    value = " + ".join(f"{10**place} * d{place}.n" for place in places)
    return f"SELECT 1 + {value} AS seq FROM {', '.join(f'({digits}) AS d{place}' for place in places)}"


class Process(subprocess.Popen[bytes]):
    """One that does not outlive a test that failed: it is not waited for then."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, error, trace)


class Polls:
    """The polls as they were before the field, on one database, with a number of questions."""

    before, last = "0002", "0003_question_expires_date"
    #: What each row has in the end.
    populate: Any = F("pub_date") + MONTH

    def __init__(self, alias: str, environment: dict[str, str], rows: int) -> None:
        self.alias, self.environment, self.rows = alias, environment, rows
        self.connection = connections[alias]
        call_command("migrate", "safemigrate", database="default", verbosity=0)
        self.back()
        with self.connection.cursor() as cursor:
            cursor.execute(SEEDS[self.connection.vendor].format(rows=rows, numbers=numbers(rows)))
            cursor.execute(f"CREATE TABLE polls_before AS SELECT * FROM {TABLE}")

    def back(self) -> None:
        """Go to where the field is not yet there."""
        call_command("migrate", "polls", self.before, database=self.alias, verbosity=0)

    def start(self, *arguments: str, program: tuple[str, ...] = ("-m", "django"), **environment: str) -> Any:
        """Start `migrate`; its output comes by a pipe."""
        return Process(
            [sys.executable, *program, "migrate", "polls", "--database", self.alias, *arguments],
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # A shell's background job ignores Ctrl-C, and so would its children.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )

    def start_and_die(self, statement: str, seconds: float) -> Any:
        """Start a `migrate` that kills itself at a statement: so many seconds into it, or right after it."""
        died = {KILL_AT: statement, KILL_AFTER: str(seconds)}
        return self.start(program=("-m", "tests.support.processes"), **died)

    def finish(self) -> None:
        with self.start() as process:
            output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, (output + errors).decode()

    def filled(self) -> int:
        """Return how many rows have a value, 0 where the column is not there yet."""
        if (
            for_connection(self.connection).column(apps.get_model("polls", "Question"), "expires_date")
            is None
        ):
            return 0
        return self.questions().filter(expires_date__isnull=False).count()

    def questions(self) -> Any:
        return apps.get_model("polls", "Question").objects.using(self.alias)

    def columns(self) -> dict[str, bool]:
        with self.connection.cursor() as cursor:
            found = self.connection.introspection.get_table_description(cursor, TABLE)
        return {column.name: bool(column.null_ok) for column in found}

    def schema(self) -> dict[str, Any]:
        with self.connection.cursor() as cursor:
            return {
                "tables": sorted(self.connection.introspection.table_names(cursor)),
                "columns": self.columns(),
                "constraints": self.connection.introspection.get_constraints(cursor, TABLE),
                "unproven": self._unproven(cursor),
            }

    def _unproven(self, cursor: Any) -> list[Any]:
        if self.connection.vendor != "postgresql":
            return []
        cursor.execute(
            "SELECT conname FROM pg_constraint WHERE NOT convalidated OR conname LIKE '%safemigrate%' "
            "UNION ALL SELECT indexrelid::regclass::name FROM pg_index WHERE NOT indisvalid"
        )
        return list(cursor.fetchall())

    def assert_ended_well(self) -> None:
        """All is as the migration promises, and nothing else in the table has changed."""
        questions = self.questions()
        assert self.columns() == dict.fromkeys([*COLUMNS, "expires_date"], False)
        assert questions.filter(expires_date=self.populate).count() == questions.count() == self.rows
        with self.connection.cursor() as cursor:
            cursor.execute(
                f"SELECT COUNT(*) FROM polls_before b JOIN {TABLE} q ON q.id = b.id "
                "WHERE q.question_text = b.question_text AND q.pub_date = b.pub_date"
            )
            assert cursor.fetchone()[0] == self.rows
        assert self._unproven_now() == []
        assert ("polls", self.last) in MigrationRecorder(self.connection).applied_migrations()

    def _unproven_now(self) -> list[Any]:
        with self.connection.cursor() as cursor:
            return self._unproven(cursor)


class NullablePolls(Polls):
    """The polls whose field is there as null=True, NULL in every second row; it is to be required, with an index.

    With `MIGRATION_MODULES = MODULES` in this process; each that it starts has them.
    """

    before, last = "0003_nullable", "0004_require"
    MODULES: ClassVar = {"polls": "tests.support.nullable_migrations"}

    def __init__(self, alias: str, environment: dict[str, str], rows: int) -> None:
        super().__init__(alias, environment | {MIGRATIONS: self.MODULES["polls"]}, rows)
        self.questions().update(expires_date=F("pub_date") + MONTH)
        self._half()

    def back(self) -> None:
        super().back()
        self._half()

    def _half(self) -> None:
        with self.connection.cursor() as cursor:
            cursor.execute(f"UPDATE {TABLE} SET expires_date = NULL WHERE id % 2 = 0")


class CommonPolls(Polls):
    """The polls of whose new field most rows get one value; MODULES as above."""

    last = "0003_common"
    MODULES: ClassVar = {"polls": "tests.support.common_value_migrations"}
    populate = common_value_migrations.POPULATE

    def __init__(self, alias: str, environment: dict[str, str], rows: int) -> None:
        super().__init__(alias, environment | {MIGRATIONS: self.MODULES["polls"]}, rows)


class Dying:
    """Kills this process at a statement."""

    def __call__(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if os.environ[KILL_AT] not in sql:
            return execute(sql, params, many, context)
        timer = threading.Timer(float(os.environ[KILL_AFTER]), self.die)
        timer.daemon = True
        timer.start()
        execute(sql, params, many, context)
        return self.die()

    @staticmethod
    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    for connection in connections.all():
        connection.execute_wrappers.append(Dying())
    execute_from_command_line()


if __name__ == "__main__":
    main()
