"""Which lock each statement of an operation takes, as the server itself shows a second connection."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
from django.db import migrations, models
from django.db.models import F
from django.db.transaction import atomic

from safemigrate.engine import engine
from safemigrate.operations import AddNullableField, AddRequiredField, Populate, SetNotNull
from safemigrate.schema import runner
from safemigrate.schema.steps import Step
from tests.support.sandbox import MONTH, MigrationSandbox
from tests.support.sessions import another, lock_plugin, run

TABLE, PARENT = "boxes_question", "boxes_site"
# What readers and writers hold themselves.
WEAK = {
    "postgresql": {"AccessShareLock", "RowShareLock", "RowExclusiveLock"},
    "mysql": {"MDL_SHARED", "MDL_SHARED_READ", "MDL_SHARED_WRITE"},
}
WRITING = {"postgresql": "RowExclusiveLock", "mysql": "MDL_SHARED_WRITE"}
# As the documentation of PostgreSQL orders them, the weakest first.
MODES = {
    "AccessShareLock": "ACCESS SHARE",
    "RowShareLock": "ROW SHARE",
    "RowExclusiveLock": "ROW EXCLUSIVE",
    "ShareUpdateExclusiveLock": "SHARE UPDATE EXCLUSIVE",
    "ShareLock": "SHARE",
    "ShareRowExclusiveLock": "SHARE ROW EXCLUSIVE",
    "ExclusiveLock": "EXCLUSIVE",
    "AccessExclusiveLock": "ACCESS EXCLUSIVE",
}
BLOCKED = {
    "ACCESS EXCLUSIVE": "everyone",
    "SHARE ROW EXCLUSIVE": "writers",
    "SHARE UPDATE EXCLUSIVE": "nobody",
}

FIELDS: dict[str, tuple[str, Callable[[], Any], Any]] = {
    "plain": ("expires_date", lambda: models.DateTimeField("expires at"), F("pub_date") + MONTH),
    "by a function": (
        "expires_date",
        lambda: models.DateTimeField("expires at"),
        lambda question: question.pub_date + MONTH,
    ),
    "unique": ("number", lambda: models.BigIntegerField(unique=True), F("pk")),
    "indexed": ("number", lambda: models.BigIntegerField(db_index=True), F("pk")),
    "checked": ("votes", models.PositiveIntegerField, F("pk")),
    "with a default": ("votes", lambda: models.IntegerField(db_default=7), F("pk")),
    "constant": ("votes", models.IntegerField, 0),
    "referring": ("site", lambda: models.ForeignKey("boxes.site", models.CASCADE), 1),
    "referring once": ("site", lambda: models.OneToOneField("boxes.site", models.CASCADE), F("pk")),
}


@pytest.fixture(params=FIELDS)
def operation(request: pytest.FixtureRequest) -> AddRequiredField:
    name, field, populate = FIELDS[request.param]
    return AddRequiredField("question", name, field(), populate, batch_size=10)


@pytest.fixture
def sandbox(alias: str) -> MigrationSandbox:
    sandbox = MigrationSandbox(alias)
    sandbox.run(migrations.CreateModel("Site", [("id", models.BigAutoField(primary_key=True))]))
    sandbox.fill(20)
    with sandbox.connection.cursor() as cursor:
        cursor.executemany(f"INSERT INTO {PARENT} (id) VALUES (%s)", [(n,) for n in range(1, 21)])
    return sandbox


Held = dict[str, set[str]]


class Look:
    """What one connection holds, as another sees it: modes by table."""

    IDENTITIES = {"postgresql": "SELECT pg_backend_pid()", "mysql": "SELECT CONNECTION_ID()"}
    QUERIES = {
        "postgresql": "SELECT relation::regclass::text, mode FROM pg_locks WHERE granted AND pid = {} "
        f"AND relation IN ('{TABLE}'::regclass, '{PARENT}'::regclass)",
        "mysql": "SELECT table_name, lock_mode FROM information_schema.metadata_lock_info WHERE thread_id = {} "
        f"AND table_name IN ('{TABLE}', '{PARENT}')",
    }

    def __init__(self, connection: Any, watcher: Any) -> None:
        self.watcher, self.query = watcher, self.QUERIES[connection.vendor]
        self.pid = run(connection, self.IDENTITIES[connection.vendor])[0][0]

    def __call__(self) -> Held:
        held: Held = {TABLE: set(), PARENT: set()}
        for table, mode in run(self.watcher, self.query.format(self.pid)):
            held[table].add(mode)
        return held

    def waits(self) -> bool:
        return bool(run(self.watcher, f"SELECT 1 FROM pg_locks WHERE NOT granted AND pid = {self.pid}"))


class Recorder:
    """Looks at the locks in each statement of each step, in each of the fill, and between two batches."""

    def __init__(self, sandbox: MigrationSandbox, look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sandbox, self.look = sandbox, look
        self.step: Step | None = None
        self.steps: list[tuple[Step, Held]] = []
        self.fill: list[tuple[str, Held]] = []
        self.between: list[Held] = []
        real = runner._run

        def in_step(database: Any, step: Step) -> None:
            self.step = step
            self.steps.append((step, {TABLE: set(), PARENT: set()}))
            real(database, step)
            self.step = None

        monkeypatch.setattr(runner, "_run", in_step)
        monkeypatch.setattr(engine, "new_observer", lambda: Between(self))

    def __call__(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql.split(maxsplit=1)[0] in ("SAVEPOINT", "RELEASE", "ROLLBACK", "SET", "SHOW"):
            return execute(sql, params, many, context)
        if "CONCURRENTLY" in sql:
            return self._during(lambda: execute(sql, params, many, context))
        with atomic(self.sandbox.alias):
            # Locks are held until the transaction ends, which is here or, for a step, later.
            result = execute(sql, params, many, context)
            self._note(sql, self.look())
        return result

    def _during(self, execute: Callable[[], Any]) -> Any:
        """Look at a statement that can be in no transaction while it waits for a writer."""
        with another(self.sandbox.alias) as writer:
            writer.set_autocommit(False)
            run(writer, f"UPDATE {TABLE} SET question_text = 'new' WHERE id = 1")

            def look() -> None:
                deadline = time.monotonic() + 10
                while not self.look.waits() and time.monotonic() < deadline:
                    time.sleep(0.01)
                self._note("", self.look())
                writer.rollback()

            thread = threading.Thread(target=look)
            thread.start()
            try:
                return execute()
            finally:
                thread.join()

    def _note(self, sql: str, held: Held) -> None:
        if self.step is None:
            self.fill.append((sql, held))
        else:
            for table, modes in held.items():
                self.steps[-1][1][table].update(modes)


class Between(engine.NullObserver):
    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def advance(self, run: engine.Run) -> None:
        self.recorder.between.append(self.recorder.look())


@pytest.fixture(autouse=True)
def plugin(alias: str) -> Iterator[None]:
    with lock_plugin(alias) if alias == "mariadb" else nullcontext():
        yield


@contextmanager
def recorded(
    sandbox: MigrationSandbox, monkeypatch: pytest.MonkeyPatch, kind: Any = Recorder
) -> Iterator[Any]:
    with another(sandbox.alias) as watcher:
        recorder = kind(sandbox, Look(sandbox.connection, watcher), monkeypatch)
        with sandbox.connection.execute_wrapper(recorder):
            yield recorder


def strongest(modes: set[str]) -> str:
    return MODES[max(modes, key=list(MODES).index)] if modes else ""


POSTGRESQL = pytest.mark.parametrize("alias", ["postgresql", "postgresql_old"], indirect=True)


def assert_as_told(steps: list[tuple[Step, Held]]) -> None:
    """Compare what was held in each step with what the step says of itself."""
    assert steps
    for step, held in steps:
        found, parents = strongest(held[TABLE]), strongest(held[PARENT])
        both = parents in BLOCKED
        assert str(step.lock.name) == f"{found} on {'both tables' if both else 'the table'}", step.title
        assert step.lock.blocks == BLOCKED[found]
        assert not both or found == parents


@POSTGRESQL
def test_each_step_takes_the_lock_that_it_tells_of(
    sandbox: MigrationSandbox, operation: AddRequiredField, monkeypatch: pytest.MonkeyPatch
) -> None:
    with recorded(sandbox, monkeypatch) as recorder:
        sandbox.run(operation)
    assert_as_told(recorder.steps)
    assert not sandbox.column(sandbox.model()._meta.get_field(operation.name).column).nullable


@POSTGRESQL
def test_backwards_step_by_step_too(
    sandbox: MigrationSandbox, operation: AddRequiredField, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, require = (
        kind("question", operation.name, operation.field) for kind in (AddNullableField, SetNotNull)
    )
    bare = sandbox.after(add)
    before = sandbox.state
    sandbox.run(add, Populate("question", operation.name, operation.populate))
    sandbox.run(require)
    with recorded(sandbox, monkeypatch) as recorder:
        sandbox.undo(require, before=bare)
        sandbox.undo(add, before=before)
    assert len(recorder.steps) >= 2
    assert_as_told(recorder.steps)


@POSTGRESQL
def test_backwards_in_one_too(
    sandbox: MigrationSandbox, operation: AddRequiredField, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sandbox.state
    sandbox.run(operation)
    with recorded(sandbox, monkeypatch) as recorder:
        sandbox.undo(operation, before=before)
    assert_as_told(recorder.steps)
    dropped = recorder.steps[-1][1]
    # A foreign key has its triggers on the other table too.
    assert bool(dropped[PARENT]) == (operation.name == "site")


def make_it_write(operation: AddRequiredField) -> None:
    """A value that is the same for all rows is not written row by row; one that reads a column is."""
    if isinstance(operation.populate, int):
        operation.populate = F("pk") - F("pk") + operation.populate


@pytest.mark.parametrize("alias", ["postgresql", "postgresql_old", "mariadb"], indirect=True)
def test_the_fill_holds_nothing_between_batches_and_little_in_them(
    sandbox: MigrationSandbox, operation: AddRequiredField, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, weak = WRITING[sandbox.connection.vendor], WEAK[sandbox.connection.vendor]
    make_it_write(operation)
    with recorded(sandbox, monkeypatch) as recorder:
        sandbox.run(operation)
    assert recorder.between
    assert all(held == {TABLE: set(), PARENT: set()} for held in recorder.between)
    writes = [held for sql, held in recorder.fill if sql.startswith("UPDATE")]
    assert len(writes) >= 2
    assert all(writing in held[TABLE] for held in writes)
    assert all(held[TABLE] | held[PARENT] <= weak for _, held in recorder.fill)


class Sampler(Recorder):
    """Looks again and again while an ALTER of a step runs; counts in how many looks each mode was held."""

    def __init__(self, sandbox: MigrationSandbox, look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(sandbox, look, monkeypatch)
        self.sampled: list[tuple[Step, Counter[str]]] = []

    def __call__(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if self.step is None or not sql.startswith("ALTER"):
            return execute(sql, params, many, context)
        counts: Counter[str] = Counter()
        self.sampled.append((self.step, counts))
        ended = threading.Event()

        def sample() -> None:
            while not ended.is_set():
                counts.update(self.look()[TABLE] or {"nothing"})

        thread = threading.Thread(target=sample)
        thread.start()
        try:
            return execute(sql, params, many, context)
        finally:
            ended.set()
            thread.join()


@pytest.mark.parametrize("alias", ["mariadb"], indirect=True)
def test_while_mariadb_reads_or_copies_the_table_it_holds_a_shared_lock(
    sandbox: MigrationSandbox, operation: AddRequiredField, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = (
        f"INSERT INTO {TABLE} (question_text, pub_date) SELECT 'Question?', '2026-01-01' FROM seq_1_to_30000"
    )
    run(sandbox.connection, rows)
    run(sandbox.connection, f"INSERT IGNORE INTO {PARENT} SELECT id FROM {TABLE}")
    operation.batch_size = None
    make_it_write(operation)
    with recorded(sandbox, monkeypatch, Sampler) as sampler:
        sandbox.run(operation)
    copied = [counts for step, counts in sampler.sampled if step.lock.lasts == "while it is copied"]
    assert len(copied) == 1
    assert "MDL_SHARED_UPGRADABLE" in copied[0]
    for step, counts in sampler.sampled:
        # A copy that blocks writers would hold MDL_SHARED_NO_WRITE.
        assert set(counts) <= {"nothing", "MDL_SHARED_UPGRADABLE", "MDL_EXCLUSIVE"}, step.title
