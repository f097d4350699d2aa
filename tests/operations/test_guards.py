"""Write guards: what a row gets that old code inserts, and that nothing of them stays."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

import pytest
from django.db import DatabaseError, IntegrityError, connections, migrations, models
from django.db.migrations.optimizer import MigrationOptimizer
from django.db.models import Case, Exists, F, OuterRef, Q, QuerySet, Subquery, Value, When
from django.db.models.expressions import RawSQL
from django.db.models.functions import Cast, Coalesce, Concat, ExtractYear, Length, Lower, Substr, Upper
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from safemigrate.backends import for_connection
from safemigrate.exceptions import BadRows, InvalidPopulate, NoGuard
from safemigrate.operations import (
    AddNullableField,
    AddRequiredField,
    GuardWrites,
    Populate,
    RequireField,
    SetNotNull,
    UnguardWrites,
)
from safemigrate.populate import FromApps, FromRelated
from safemigrate.populate.sources import resolve
from safemigrate.schema import guards
from tests.support.sandbox import APP, MONTH, START, MigrationSandbox, question
from tests.support.sessions import another, run

EXPIRES = models.DateTimeField("expires at")
LATER = F("pub_date") + MONTH
CODE = models.CharField(max_length=400)
UUID = models.UUIDField()
SERVERS = ["postgresql", "postgresql_old", "mariadb"]


def page_title(apps: Any) -> Subquery:
    pages = apps.get_model(APP, "page").objects.filter(pk=OuterRef("page"))
    return Subquery(pages.values("title")[:1])


def has_page(apps: Any) -> Case:
    pages = apps.get_model(APP, "page").objects.filter(pk=OuterRef("page"))
    return Case(When(Exists(pages), then=Value("it's 100 %")), default=Lower("question_text"))


def full_road(alias: str) -> MigrationSandbox:
    """A table with columns of several kinds, and one that it refers to."""
    page = migrations.CreateModel(
        "Page", [("id", models.BigAutoField(primary_key=True)), ("title", models.CharField(max_length=100))]
    )
    more = [
        ("votes", models.IntegerField(null=True)),
        ("price", models.DecimalField(max_digits=8, decimal_places=2)),
        ("page", models.ForeignKey(f"{APP}.page", models.CASCADE, null=True)),
    ]
    sandbox = MigrationSandbox(alias, page, question(fields=more))
    sandbox.rows("Page").bulk_create(
        [sandbox.model("Page")(title=title) for title in ("One", "Two's", "100 %")]
    )
    return sandbox


def triggers(alias: str) -> list[Any]:
    database = for_connection(connections[alias])
    queries = {
        "postgresql": "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal UNION ALL "
        "SELECT proname FROM pg_proc WHERE proname LIKE '%%safemigrate%%'",
        "mysql": "SHOW TRIGGERS",
        "sqlite": "SELECT name FROM sqlite_master WHERE type = 'trigger'",
    }
    return [row[0] for row in database.fetch(queries[connections[alias].vendor])]


def is_guarded(alias: str, sandbox: MigrationSandbox, name: str) -> bool:
    return bool(triggers(alias)) or sandbox.column(name).has_default


# The guard's value is the fill's value

#: The field, its populate, and whether SQLite has what it takes without Django's functions.
EXPRESSIONS: dict[str, tuple[Any, Any, bool]] = {
    "date": (EXPIRES, LATER, False),
    "text": (
        CODE,
        Concat(Lower("question_text"), Value(" 'it''s' 50% \\ \" $guard$ "), Upper("question_text")),
        True,
    ),
    "cast": (CODE, Concat(Cast("votes", models.CharField(max_length=20)), Value("/"), "question_text"), True),
    "case": (
        CODE,
        Case(When(Q(votes__gt=3) | Q(votes=None), then=Value("many")), default="question_text"),
        True,
    ),
    "coalesce": (models.IntegerField(), Coalesce("votes", 7), True),
    "length": (models.IntegerField(), Length("question_text") + F("votes") * 2, True),
    "cut": (CODE, Substr("question_text", 1, 3), True),
    "decimal": (models.DecimalField(max_digits=10, decimal_places=2), F("price") * Decimal("1.5"), True),
    "year": (models.IntegerField(), ExtractYear("pub_date"), False),
    "bare": (models.IntegerField(), F("votes"), True),
    "related": (CODE, FromRelated("page__title"), True),
    "subquery": (CODE, FromApps(page_title), True),
    "exists": (CODE, FromApps(has_page), True),
    "constant": (CODE, "it's 100 % \\ \"x\" 'y'", True),
    "value": (CODE, Value("draft"), True),
    "number": (models.IntegerField(), 42, True),
    "moment": (EXPIRES, START, True),
    "amount": (models.DecimalField(max_digits=10, decimal_places=2), Decimal("1.50"), True),
    "json": (models.JSONField(), {"a": [1, "it's 100 %", None]}, True),
    "truth": (models.BooleanField(), True, True),
}

TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=60)
ROWS = st.fixed_dictionaries(
    {
        "question_text": st.one_of(
            TEXTS, st.sampled_from(["it's", "100 %", '"quoted"', "back\\slash", "$guard$"])
        ),
        "pub_date": st.integers(0, 3_000_000_000).map(lambda s: datetime.fromtimestamp(s, timezone.utc)),
        "votes": st.one_of(st.none(), st.integers(-1000, 1000)),
        "price": st.decimals(0, 99999, places=2, allow_nan=False),
        "page": st.one_of(st.none(), st.integers(0, 2)),
    }
)


@pytest.mark.matrix
@pytest.mark.parametrize("kind", EXPRESSIONS)
def test_the_guard_gives_a_row_what_the_fill_gives_it(alias: str, kind: str) -> None:
    field, populate, plain = EXPRESSIONS[kind]
    sandbox = full_road(alias)
    old, pages = sandbox.model(), sandbox.values("pk", "Page")
    sandbox.run(AddNullableField("question", "made", field))
    guard, unguard = GuardWrites("question", "made", populate), UnguardWrites("question", "made")

    @settings(
        max_examples=12,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(st.lists(ROWS, min_size=1, max_size=8))
    def same(rows: list[dict[str, Any]]) -> None:
        sandbox.run(guard)
        assert is_guarded(alias, sandbox, "made") == (plain or alias != "default")
        for row in rows:
            page = None if row["page"] is None else pages[row["page"]]
            QuerySet(old, using=alias).create(**{**row, "page": None, "page_id": page})
        guarded = sandbox.values("made")
        sandbox.run(unguard)
        sandbox.rows().update(made=None)
        try:
            sandbox.run(Populate("question", "made", populate))
        except BadRows:
            assert None in guarded or not plain
        if is_server_or_plain(alias, plain):
            assert guarded == sandbox.values("made")
        sandbox.rows().delete()

    same()
    assert triggers(alias) == []


def is_server_or_plain(alias: str, plain: bool) -> bool:
    return plain or alias != "default"


def test_a_guard_of_uuids_makes_a_new_one_of_version_4_for_each_row(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    old = sandbox.model()
    sandbox.run(AddNullableField("question", "code", UUID), GuardWrites("question", "code", uuid.uuid4))
    for number in range(40):
        QuerySet(old, using=alias).create(question_text=f"{number}?", pub_date=START)
    made = sandbox.values("code")
    assert len(set(made)) == 40
    assert {(code.version, code.variant) for code in made} == {(4, uuid.RFC_4122)}
    assert len({str(code)[19] for code in made}) > 1
    sandbox.run(UnguardWrites("question", "code"))
    assert not is_guarded(alias, sandbox, "code")


# During the sandbox


def insert(sandbox: MigrationSandbox, text: str = "Late?") -> None:
    """As old code does it, which knows nothing of the field."""
    with sandbox.connection.cursor() as cursor:
        cursor.execute("INSERT INTO boxes_question (question_text, pub_date) VALUES (%s, %s)", [text, START])


class AtEach:
    """Does something after each statement of the sandbox that changes anything, as soon as it is committed."""

    def __init__(self, action: Callable[[], Any]) -> None:
        self.action, self.inside, self.changed = action, False, False

    def __call__(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        result = execute(sql, params, many, context)
        if self.inside:
            return result
        self.changed = self.changed or self.is_ours(sql)
        if self.changed and not context["connection"].in_atomic_block:
            self.inside, self.changed = True, False
            try:
                self.action()
            finally:
                self.inside = False
        return result

    @staticmethod
    def is_ours(sql: str) -> bool:
        return sql.startswith(("ALTER", "CREATE", "DROP", "UPDATE"))


@pytest.mark.parametrize("alias", SERVERS, indirect=True)
def test_old_code_inserts_before_during_and_after_with_keep_guard(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(3)
    add = AddRequiredField("question", "expires_date", EXPIRES, LATER, keep_guard=True)
    with connections[alias].execute_wrapper(AtEach(lambda: insert(sandbox))):
        sandbox.run(add)
    insert(sandbox, "After?")
    assert sandbox.rows().count() > 4
    assert all(row.expires_date == row.pub_date + MONTH for row in sandbox.rows())
    assert not sandbox.column("expires_date").nullable
    sandbox.run(UnguardWrites("question", "expires_date"))
    with pytest.raises(IntegrityError if alias != "mariadb" else DatabaseError):
        insert(sandbox, "Too late?")


@pytest.mark.parametrize("alias", SERVERS, indirect=True)
@pytest.mark.parametrize(
    ("field", "populate"), [(models.IntegerField(), 0), (UUID, uuid.uuid4)], ids=["constant", "uuid"]
)
def test_a_default_is_kept_by_keep_guard(alias: str, field: Any, populate: Any) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(3)
    with connections[alias].execute_wrapper(AtEach(lambda: insert(sandbox))):
        sandbox.run(AddRequiredField("question", "extra", field, populate, keep_guard=True))
    insert(sandbox)
    assert None not in sandbox.values("extra")
    assert not sandbox.column("extra").nullable


@pytest.mark.parametrize("alias", ["sqlite"], indirect=True)
def test_sqlite_cannot_keep_a_guard_and_says_so(alias: str, caplog: pytest.LogCaptureFixture) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(3)
    sandbox.run(AddRequiredField("question", "title", CODE, Lower("question_text"), keep_guard=True))
    assert "boxes.question.title on default: the guard could not be kept" in caplog.text
    assert triggers(alias) == []


def test_without_keep_guard_nothing_stays(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(3)
    sandbox.run(
        AddRequiredField("question", "expires_date", EXPIRES, LATER),
        AddRequiredField("question", "votes", models.IntegerField(), 1),
        AddRequiredField("question", "title", CODE, Lower("question_text")),
    )
    assert triggers(alias) == []
    assert [sandbox.column(name).has_default for name in ("expires_date", "votes", "title")] == [False] * 3


class Seeing:
    """Looks before each UPDATE."""

    def __init__(self, look: Callable[[], Any]) -> None:
        self.look = look

    def __call__(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql.startswith("UPDATE"):
            self.look()
        return execute(sql, params, many, context)


def test_a_guard_stands_while_rows_are_filled(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(3)
    seen: list[Any] = []
    with connections[alias].execute_wrapper(Seeing(lambda: seen.extend(triggers(alias)))):
        sandbox.run(AddRequiredField("question", "title", CODE, Lower("question_text"), batch_size=2))
    assert seen


def guarded_events(alias: str) -> set[str]:
    """Return what triggers of ours run at, in a database that has triggers of one table."""
    database = for_connection(connections[alias])
    queries = {
        "postgresql": "SELECT lower(event_manipulation) FROM information_schema.triggers",
        "mysql": "SELECT LOWER(event_manipulation) FROM information_schema.triggers "
        "WHERE trigger_schema = DATABASE()",
        "sqlite": "SELECT CASE WHEN sql LIKE '%% AFTER UPDATE ON %%' THEN 'update' ELSE 'insert' END "
        "FROM sqlite_master WHERE type = 'trigger'",
    }
    return {row[0] for row in database.fetch(queries[connections[alias].vendor])}


@pytest.mark.parametrize(
    ("is_new", "events"), [(True, {"insert"}), (False, {"insert", "update"})], ids=["new", "known"]
)
def test_only_a_field_that_code_knows_is_guarded_against_updates(
    alias: str, is_new: bool, events: set[str]
) -> None:
    known = [] if is_new else [("title", models.CharField(max_length=400, null=True))]
    sandbox = MigrationSandbox(alias, question(fields=known))
    sandbox.fill(3)
    seen: set[str] = set()
    operation = AddRequiredField if is_new else RequireField
    with connections[alias].execute_wrapper(Seeing(lambda: seen.update(guarded_events(alias)))):
        sandbox.run(operation("question", "title", CODE, Lower("question_text"), batch_size=2))
    assert seen == events


@pytest.mark.parametrize("alias", SERVERS, indirect=True)
def test_a_guard_of_inserts_alone_takes_the_place_of_one_of_both(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(3)
    before, by = sandbox.state, Lower("question_text")
    sandbox.run(AddNullableField("question", "title", CODE), GuardWrites("question", "title", by))
    assert guarded_events(alias) == {"insert", "update"}
    sandbox.state = before
    sandbox.run(AddRequiredField("question", "title", CODE, Lower("question_text")))
    assert triggers(alias) == []


@pytest.mark.parametrize("alias", SERVERS, indirect=True)
def test_a_row_that_old_code_updates_before_the_fill_comes_to_it_is_filled(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(6)

    def update() -> None:
        with connections[alias].cursor() as cursor:
            cursor.execute("UPDATE boxes_question SET pub_date = %s WHERE pub_date < %s", [START, START])

    sandbox.rows().update(pub_date=START - MONTH)
    changed = sandbox.rows().filter(pub_date=START)
    with connections[alias].execute_wrapper(AtEach(update)):
        sandbox.run(AddRequiredField("question", "expires_date", EXPIRES, LATER, batch_size=2))
    assert changed.count() == 6  # It was updated in between, by code that does not know the field.
    assert not sandbox.column("expires_date").nullable
    assert {row.expires_date for row in sandbox.rows()} == {START + MONTH}


@pytest.mark.parametrize("alias", SERVERS, indirect=True)
def test_after_a_failed_run_the_guard_stands_and_its_reverse_takes_it_away(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(3)
    before = sandbox.state
    half = AddRequiredField("question", "title", models.CharField(max_length=9), Lower("question_text"))
    with pytest.raises(BadRows):
        sandbox.run(half)  # "question 1?" is too long.
    assert triggers(alias)
    sandbox.state = sandbox.after(half)
    sandbox.undo(half, before=before)
    assert triggers(alias) == []
    assert "title" not in sandbox.schema()["columns"]


def test_run_twice_with_another_expression_it_is_replaced(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    old = sandbox.model()
    sandbox.run(
        AddNullableField("question", "title", CODE),
        GuardWrites("question", "title", Lower("question_text")),
        GuardWrites("question", "title", Upper("question_text")),
        GuardWrites("question", "title", Upper("question_text")),
    )
    QuerySet(old, using=alias).create(question_text="Who?", pub_date=START)
    assert sandbox.values("title") == ["WHO?"]


def test_in_three_files_forwards_and_backwards(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(3)
    old, start = sandbox.model(), sandbox.state
    populate = Lower("question_text")
    first = [AddNullableField("question", "title", CODE), GuardWrites("question", "title", populate)]
    last = [SetNotNull("question", "title", CODE), UnguardWrites("question", "title")]
    sandbox.run(*first)
    added = sandbox.state
    QuerySet(old, using=alias).create(question_text="Late?", pub_date=START)
    sandbox.run(Populate("question", "title", populate))
    filled = sandbox.state
    sandbox.run(*last)
    assert triggers(alias) == []
    sandbox.undo(*last, before=filled)
    assert triggers(alias)
    QuerySet(old, using=alias).create(question_text="Later?", pub_date=START)
    assert sorted(sandbox.values("title"))[:2] == ["late?", "later?"]
    sandbox.undo(Populate("question", "title", populate), before=added)
    sandbox.undo(*first, before=start)
    assert triggers(alias) == []
    assert "title" not in sandbox.schema()["columns"]


# What it refuses, and what it only passes over


@pytest.mark.parametrize("alias", SERVERS, indirect=True)
def test_an_expression_that_fails_for_a_row_does_not_refuse_the_row(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(1)
    field = models.CharField(max_length=5)
    sandbox.run(
        AddNullableField("question", "title", field), GuardWrites("question", "title", Lower("question_text"))
    )
    insert(sandbox, "Much too long")
    insert(sandbox, "Short")
    assert sandbox.values("title")[1:] == [None, "short"]


def limited_by(
    alias: str, *checks: Q, field: Any = None, more: Any = (), indexes: Sequence[models.UniqueConstraint] = ()
) -> MigrationSandbox:
    """A table with the nullable column n, known to old code, and limits."""
    fields = [
        ("n", field or models.IntegerField(null=True)),
        ("votes", models.IntegerField(default=0)),
        *more,
    ]
    sandbox = MigrationSandbox(alias, question(fields=fields))
    named = [models.CheckConstraint(condition=q, name=f"limit_{number}") for number, q in enumerate(checks)]
    for constraint in [*named, *indexes]:
        sandbox.run(migrations.AddConstraint("question", constraint))
    return sandbox


def come_in(sandbox: MigrationSandbox, *votes: int) -> list[Any]:
    """Insert rows without n, as old code does, and return what n is in them."""
    for each in votes:
        sandbox.rows().create(question_text="old code", pub_date=START, votes=each)
    return list(sandbox.values("n"))


@pytest.mark.parametrize("populate", [F("votes") - 5, 4], ids=["expression", "constant"])
def test_a_row_whose_value_a_check_refuses_comes_in_as_null(alias: str, populate: Any) -> None:
    sandbox = limited_by(alias, Q(n__gte=0), Q(n__lt=F("votes"), question_text__startswith="o"))
    guard = GuardWrites("question", "n", populate)
    sandbox.run(guard)
    if populate == 4:
        assert come_in(sandbox, 2, 7) == [None, 4]
    else:
        assert come_in(sandbox, 3, 7) == [None, 2]
    sandbox.run(guard)
    sandbox.run(UnguardWrites("question", "n"))
    assert triggers(alias) == []


@pytest.mark.parametrize("alias", SERVERS, indirect=True)
def test_a_constant_beside_a_check_of_a_new_column_is_no_default(alias: str) -> None:
    sandbox = MigrationSandbox(alias, question(fields=[("votes", models.IntegerField(default=0))]))
    limit = models.CheckConstraint(condition=Q(n__lt=F("votes")), name="less")
    sandbox.run(
        AddNullableField("question", "n", models.PositiveIntegerField()),
        migrations.AddConstraint("question", limit),
        GuardWrites("question", "n", 4),
    )
    assert come_in(sandbox, 2, 7) == [None, 4]


def test_a_constant_that_a_check_refuses_is_refused_before_anything_is_done(alias: str) -> None:
    sandbox = limited_by(alias, ~Q(n__lt=0) & Q(n__lt=1000), Q(n__lt=F("votes")))
    sandbox.fill(3, votes=9)
    before = sandbox.schema()
    for populate in (-1, Value(1000)):
        for operation in (
            RequireField("question", "n", models.IntegerField(), populate),
            GuardWrites("question", "n", populate),
            Populate("question", "n", populate),
        ):
            with pytest.raises(
                InvalidPopulate, match=r"boxes.Question.n on \w+: the constraint limit_0 of the table"
            ):
                sandbox.run(operation)
    assert sandbox.schema() == before
    assert triggers(alias) == []
    sandbox.run(RequireField("question", "n", models.IntegerField(), 8))
    assert set(sandbox.values("n")) == {8}


def test_where_the_fill_ends_with_bad_rows_old_code_goes_on(alias: str) -> None:
    sandbox = limited_by(alias, Q(n__lt=F("votes")))
    sandbox.fill(3, votes=9)
    sandbox.fill(1, votes=1)
    with pytest.raises(BadRows):
        sandbox.run(RequireField("question", "n", models.IntegerField(), 4))
    assert come_in(sandbox, 0, 5) == [4, 4, 4, None, None, 4]


def test_a_key_of_no_row_comes_in_as_null(alias: str) -> None:
    page = models.ForeignKey(f"{APP}.page", models.CASCADE, null=True)
    sandbox = full_road(alias)
    first = sandbox.rows("Page").order_by("pk").first().pk
    sandbox.run(GuardWrites("question", "page", F("votes") + first))
    for votes in (0, 50):
        sandbox.rows().create(question_text="old code", pub_date=START, votes=votes, price=1)
    assert sandbox.values("page") == [first, None]
    required = models.ForeignKey(f"{APP}.page", models.CASCADE)
    with pytest.raises(BadRows, match="1 row"):
        sandbox.run(RequireField("question", "page", required, F("votes") + first))
    assert sandbox.values("page") == [first, None]
    sandbox.run(UnguardWrites("question", "page"))
    before = sandbox.schema()
    with pytest.raises(InvalidPopulate, match="cannot be filled with 9999: no row of boxes.Page has this id"):
        sandbox.run(RequireField("question", "page", required, 9999))
    assert sandbox.schema() == before
    sandbox.run(RequireField("question", "page", required, first))
    assert sandbox.values("page") == [first, first]
    assert page.null


ONE = models.UniqueConstraint(fields=["n", "question_text"], name="one_n")


@pytest.mark.parametrize(
    "index",
    [
        ONE,
        models.UniqueConstraint(F("n"), name="one_n"),
        models.UniqueConstraint(fields=["votes"], condition=Q(n__gte=5), name="one_n"),
    ],
    ids=["two columns", "expression", "condition"],
)
def test_a_value_that_another_row_has_refuses_no_row(alias: str, index: Any) -> None:
    sandbox = limited_by(alias, indexes=[index])
    features, vendor = connections[alias].features, connections[alias].vendor
    unknown = (index.expressions and not features.supports_expression_indexes) or (
        index.condition and not features.supports_partial_indexes
    )
    if vendor == "sqlite" or unknown:
        sandbox.run(GuardWrites("question", "n", F("votes")))
        assert come_in(sandbox, 5, 5) == [5, 5 if unknown else None]
        return
    before = sandbox.schema()
    keep = RequireField("question", "n", models.IntegerField(), F("votes"), keep_guard=True)
    sandbox.fill(1, votes=1)
    with pytest.raises(NoGuard, match="may not have the same value .one_n."):
        sandbox.run(keep)
    assert sandbox.schema() == before
    sandbox.run(RequireField("question", "n", models.IntegerField(), F("votes")))
    assert sandbox.values("n") == [1]


@pytest.mark.parametrize("populate", [lambda row: 1, lambda: 1, uuid.uuid1], ids=["row", "none", "uuid1"])
def test_python_is_refused_when_the_migration_is_loaded(populate: Any) -> None:
    with pytest.raises(InvalidPopulate, match="computed in Python"):
        GuardWrites("question", "code", populate)
    with pytest.raises(InvalidPopulate, match="computed in Python"):
        AddRequiredField("question", "code", UUID, populate, keep_guard=True)
    AddRequiredField("question", "code", UUID, populate)


@pytest.fixture
def plain(alias: str) -> Iterator[str]:
    """An alias of the same database for a user who may create no triggers."""
    given = connections[alias].settings_dict
    name = given["NAME"]
    user = f"plain_{name}"[-32:]  # The server is shared by the processes that test.
    with another(alias) as admin:
        run(admin, f"DROP USER IF EXISTS {user}@'%'")
        run(admin, f"CREATE USER {user}@'%'")
        run(
            admin,
            f"GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, DROP, ALTER, INDEX ON `{name}`.* TO {user}@'%'",
        )
        connections.settings["plain"] = given | {"USER": user}
        try:
            yield "plain"
        finally:
            connections["plain"].close()
            del connections["plain"], connections.settings["plain"]
            run(admin, f"DROP USER {user}@'%'")


@pytest.mark.parametrize("alias", ["mariadb"], indirect=True)
def test_a_user_who_may_create_no_triggers_guards_by_a_default_over_other_columns(
    alias: str, plain: str
) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(5)
    old, sandbox.alias = sandbox.model(), plain
    sandbox.run(
        AddNullableField("question", "expires_date", EXPIRES), GuardWrites("question", "expires_date", LATER)
    )
    for number in range(3):
        QuerySet(old, using=alias).create(question_text="old code", pub_date=START + number * MONTH)
    assert sandbox.values("expires_date")[5:] == [START + (number + 1) * MONTH for number in range(3)]
    sandbox.run(Populate("question", "expires_date", LATER), SetNotNull("question", "expires_date", EXPIRES))
    assert not sandbox.column("expires_date").nullable
    QuerySet(old, using=alias).create(question_text="old code", pub_date=START)
    assert sandbox.values("expires_date")[-1] == START + MONTH
    sandbox.run(UnguardWrites("question", "expires_date"))
    assert not sandbox.column("expires_date").has_default
    assert triggers(alias) == []


@pytest.mark.parametrize("alias", ["mariadb"], indirect=True)
@pytest.mark.parametrize(
    ("field", "value", "given"),
    [
        (models.CharField(max_length=5), Lower("question_text"), ["short", None]),
        (models.PositiveSmallIntegerField(), F("votes") - 5, [4, None]),
        (models.DecimalField(max_digits=3, decimal_places=1), F("votes") * 10, [Decimal("90.0"), None]),
    ],
    ids=["text", "number", "decimal"],
)
def test_a_default_over_other_columns_refuses_no_row(
    alias: str, plain: str, field: Any, value: Any, given: list[Any]
) -> None:
    sandbox = MigrationSandbox(alias, question(fields=[("votes", models.IntegerField(default=0))]))
    old, sandbox.alias = sandbox.model(), plain
    sandbox.run(AddNullableField("question", "n", field), GuardWrites("question", "n", value))
    for text, votes in (("Short", 9), ("Much too long", -10000)):
        QuerySet(old, using=alias).create(question_text=text, pub_date=START, votes=votes)
    assert sandbox.values("n") == given
    sandbox.rows().filter(n=None).delete()
    sandbox.run(SetNotNull("question", "n", field))
    QuerySet(old, using=alias).create(question_text="Short", pub_date=START, votes=9)
    assert sandbox.values("n") == [given[0]] * 2


@pytest.mark.parametrize("alias", ["mariadb"], indirect=True)
def test_without_triggers_a_guard_that_reads_another_table_is_refused_before_the_fill(
    alias: str, plain: str
) -> None:
    sandbox = full_road(alias)
    sandbox.fill(3, price=1)
    before, sandbox.alias = sandbox.schema(), plain
    add = AddRequiredField("question", "title", CODE, FromApps(page_title), keep_guard=True)
    with pytest.raises(
        NoGuard, match="which takes a trigger, and the user of this connection may create none"
    ):
        sandbox.run(add)
    assert sandbox.schema() == before


@pytest.mark.parametrize("alias", ["mariadb", "sqlite"], indirect=True)
def test_where_the_database_cannot_it_says_so_and_goes_on(
    alias: str, caplog: pytest.LogCaptureFixture
) -> None:
    sandbox = MigrationSandbox(alias)
    populate = F("id") if alias == "mariadb" else LATER
    field = models.BigIntegerField() if alias == "mariadb" else EXPIRES
    sandbox.run(AddNullableField("question", "made", field), GuardWrites("question", "made", populate))
    (record,) = [r for r in caplog.records if "is not guarded" in r.message]
    assert record.levelname == "WARNING"
    assert (
        "id is given its number" if alias == "mariadb" else "Python function of Django's"
    ) in record.message
    assert not is_guarded(alias, sandbox, "made")


@pytest.mark.parametrize("alias", ["postgresql"], indirect=True)
def test_a_generated_field_is_not_known_before_the_row_is_stored(alias: str) -> None:
    generated = models.GeneratedField(
        expression=Lower("question_text"), output_field=models.CharField(max_length=200), db_persist=True
    )
    sandbox = MigrationSandbox(alias, question(fields=[("low", generated)]))
    sandbox.fill(2)
    before = sandbox.schema()
    with pytest.raises(NoGuard, match="low is a generated field") as caught:
        sandbox.run(AddRequiredField("question", "title", CODE, F("low"), keep_guard=True))
    assert "Nothing was changed." in str(caught.value)
    assert sandbox.schema() == before
    sandbox.run(AddRequiredField("question", "title", CODE, F("low")))
    assert sandbox.values("title") == ["question 1?", "question 2?"]


def test_a_field_with_a_db_default_is_guarded_by_that(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(2)
    old = sandbox.model()
    field = models.IntegerField(db_default=5)
    sandbox.run(AddNullableField("question", "votes", field), GuardWrites("question", "votes", 1))
    QuerySet(old, using=alias).create(question_text="Late?", pub_date=START)
    assert sandbox.values("votes") == [None, None, 5]
    sandbox.run(
        Populate("question", "votes", 1),
        SetNotNull("question", "votes", field),
        UnguardWrites("question", "votes"),
    )
    QuerySet(old, using=alias).create(question_text="Later?", pub_date=START)
    assert sandbox.values("votes") == [1, 1, 5, 5]


@pytest.mark.parametrize("alias", ["postgresql"], indirect=True)
def test_it_runs_after_the_triggers_that_others_have_put_there(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    for_connection(sandbox.connection).execute(
        "CREATE FUNCTION theirs() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "NEW.question_text := 'From a trigger'; RETURN NEW; END $$; "
        "CREATE TRIGGER theirs BEFORE INSERT ON boxes_question FOR EACH ROW EXECUTE FUNCTION theirs()"
    )
    sandbox.run(
        AddNullableField("question", "title", CODE), GuardWrites("question", "title", Lower("question_text"))
    )
    insert(sandbox)
    assert sandbox.values("title") == ["from a trigger"]


def test_names_are_the_same_each_time_and_fit(alias: str) -> None:
    sandbox = MigrationSandbox(alias, question(db_table="boxes_" + "x" * 50))
    sandbox.run(
        AddNullableField("question", "title_" + "y" * 40, CODE),
        GuardWrites("question", "title_" + "y" * 40, Lower("question_text")),
    )
    names = triggers(alias)
    limit = connections[alias].ops.max_name_length() or 64
    assert names
    assert all(len(name) <= limit and "safemigrate_guard" in name for name in names)
    sandbox.run(UnguardWrites("question", "title_" + "y" * 40))
    assert triggers(alias) == []


def test_on_an_empty_table_no_guard_is_put_up_unless_it_is_to_stay(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    texts: list[str] = []

    def write_down(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        texts.append(sql)
        return execute(sql, params, many, context)

    with connections[alias].execute_wrapper(write_down):
        sandbox.run(AddRequiredField("question", "title", CODE, Lower("question_text")))
    assert not [text for text in texts if "safemigrate_guard" in text and text.startswith("CREATE")]


def test_the_reason_why_not_is_told_in_words() -> None:
    assert guards.why_not(resolve(uuid.uuid4)) is None
    assert guards.why_not(resolve(LATER)) is None
    assert "computed in Python" in (guards.why_not(resolve(lambda row: 1)) or "")


def test_what_sqlmigrate_prints_has_the_guard(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    printed = sandbox.sql(AddRequiredField("question", "title", CODE, Lower("question_text")))
    assert printed.index("ADD COLUMN") < printed.index("CREATE") < printed.index("-- fill title")
    assert "DROP TRIGGER" in printed[printed.index("-- fill title") :]


def test_a_path_is_not_imported_for_an_empty_table_and_its_guard_is_found_for_a_full_one(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.run(AddRequiredField("question", "gone", CODE, "gone.away"))
    sandbox.fill(2)
    seen: list[Any] = []
    path = "tests.support.sample_populates.AN_EXPRESSION"
    add = AddRequiredField("question", "title", models.CharField(max_length=400), path, batch_size=2)
    with connections[alias].execute_wrapper(Seeing(lambda: seen.extend(triggers(alias)))):
        sandbox.run(add)
    assert seen
    with pytest.raises(InvalidPopulate, match="computed in Python"):
        sandbox.run(
            AddRequiredField(
                "question", "code", CODE, "tests.support.sample_populates.from_text", keep_guard=True
            )
        )
    sandbox.run(AddRequiredField("question", "code", CODE, "tests.support.sample_populates.from_text"))


# What must not meet, or differ


def test_the_guards_of_two_tables_with_names_alike_do_not_meet(alias: str) -> None:
    def table(name: str, db_table: str) -> migrations.CreateModel:
        fields: list[Any] = [
            ("id", models.BigAutoField(primary_key=True)),
            ("text", models.CharField(max_length=9)),
        ]
        return migrations.CreateModel(name, fields, {"db_table": db_table})

    sandbox = MigrationSandbox(alias, table("Order", "shop_order"), table("Item", "shop_order_item"))
    orders, items = sandbox.model("Order"), sandbox.model("Item")
    sandbox.run(
        AddNullableField("order", "item_code", CODE),
        GuardWrites("order", "item_code", Lower("text")),
        AddNullableField("item", "code", CODE),
        GuardWrites("item", "code", Upper("text")),
    )
    for model in (orders, items):
        QuerySet(model, using=alias).create(text="AbC")
    assert (sandbox.values("item_code", "Order"), sandbox.values("code", "Item")) == (["abc"], ["ABC"])


@pytest.mark.parametrize("alias", SERVERS, indirect=True)
def test_a_kept_guard_that_is_squashed_with_its_end_is_gone(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    operations = [
        AddRequiredField("question", "title", CODE, Lower("question_text"), keep_guard=True),
        UnguardWrites("question", "title"),
    ]
    sandbox.run(*MigrationOptimizer().optimize(operations, APP))
    assert triggers(alias) == []


@pytest.mark.parametrize("alias", SERVERS, indirect=True)
def test_a_guard_by_raw_sql_cannot_be_kept(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    sandbox.fill(2)
    raw = RawSQL("upper(question_text)", [])
    with pytest.raises(NoGuard, match="it is raw SQL"):
        sandbox.run(AddRequiredField("question", "title", CODE, raw, keep_guard=True))
    assert triggers(alias) == []
    sandbox.run(AddRequiredField("question", "title", CODE, raw))
    assert sandbox.values("title") == ["QUESTION 1?", "QUESTION 2?"]


@pytest.mark.parametrize("alias", ["postgresql", "postgresql_old"], indirect=True)
def test_the_time_zone_is_that_of_the_fill_whoever_inserts(alias: str) -> None:
    sandbox = MigrationSandbox(alias)
    day = Cast("pub_date", CODE)
    sandbox.run(AddNullableField("question", "day", CODE), GuardWrites("question", "day", day))
    with sandbox.connection.cursor() as cursor:
        cursor.execute("BEGIN; SET LOCAL timezone TO 'Asia/Tokyo'")
        cursor.execute("INSERT INTO boxes_question (question_text, pub_date) VALUES ('Late?', %s)", [START])
        cursor.execute("COMMIT")
    guarded = sandbox.values("day")
    sandbox.run(UnguardWrites("question", "day"))
    sandbox.rows().update(day=None)
    sandbox.run(Populate("question", "day", day))
    assert sandbox.values("day") == guarded


def test_a_path_to_another_table_is_refused_in_words(alias: str) -> None:
    sandbox = full_road(alias)
    sandbox.run(AddNullableField("question", "title", CODE))
    with pytest.raises(InvalidPopulate, match="FromRelated"):
        sandbox.run(GuardWrites("question", "title", F("page__title")))
