"""What a server would refuse at the end is said before the first statement, and by the plan in the same words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connections, migrations, models
from django.db.models import Value

from safemigrate.backends import for_connection
from safemigrate.exceptions import (
    InvalidField,
    InvalidPopulate,
    SafemigrateError,
    StepRefused,
    TableCopyNeeded,
)
from safemigrate.operations import AddNullableField, AddRequiredField, Populate, SetNotNull
from tests.backends.test_partitions import partitioned
from tests.plan.test_plan import look, said
from tests.schema.test_runner import another
from tests.support.sandbox import MigrationSandbox, Statements, question

POSTGRESQL = pytest.mark.parametrize("alias", ["postgresql", "postgresql_old"], indirect=True)
SERVERS = pytest.mark.parametrize("alias", ["postgresql", "postgresql_old", "mariadb"], indirect=True)
MARIADB = pytest.mark.parametrize("alias", ["mariadb"], indirect=True)

KIND = migrations.CreateModel("Kind", [("id", models.BigAutoField(primary_key=True))])
FIELDS: dict[str, Any] = {
    "plain": models.SlugField(db_index=False),
    "an index": models.SlugField(),
    "unique": models.SlugField(unique=True, db_index=False),
    "a foreign key": models.ForeignKey("boxes.Kind", models.CASCADE, db_index=False),
}


def add(name: str) -> AddRequiredField:
    return AddRequiredField("question", "new", FIELDS[name], 1 if name == "a foreign key" else "none")


def filled(alias: str) -> MigrationSandbox:
    box = MigrationSandbox(alias, KIND, question())
    box.fill(10)
    box.rows("Kind").create(pk=1)
    return box


def refused(box: MigrationSandbox, name: str, error: type[SafemigrateError] = StepRefused) -> str:
    """Run it, in one operation and step by step: nothing is changed, and the plan says the same; return what."""
    before = box.schema(), list(box.connection.introspection.table_names())
    texts = []
    for operation in (add(name), AddNullableField("question", "new", FIELDS[name])):
        statements = Statements()
        with pytest.raises(error) as caught, connections[box.alias].execute_wrapper(statements):
            box.run(operation)
        assert not statements.like("UPDATE", "ALTER TABLE `boxes_question`", 'ALTER TABLE "boxes_question"')
        text, _, address = str(caught.value).partition("\nSee https://")
        assert address.endswith(f"#{caught.type.__name__.lower()}")
        texts.append(text)
    assert texts[0] == texts[1]
    assert (box.schema(), list(box.connection.introspection.table_names())) == before
    risks = [
        risk for risk in look(box, add(name)).risks if risk.text[1:] in texts[0] and risk.cure in texts[0]
    ]
    assert risks
    assert all(risk.hurts for risk in risks)
    return texts[0]


@POSTGRESQL
@pytest.mark.parametrize("kind", ["range", "hash"])
@pytest.mark.parametrize("rows", [0, 5])
def test_unique_over_partitions(alias: str, kind: str, rows: int) -> None:
    box = partitioned(alias, kind, rows)
    text = refused(box, "unique")
    assert "is partitioned by " in text
    assert "boxes.Question.new on postgresql" in text
    box.run(add("an index"))


@POSTGRESQL
@pytest.mark.parametrize("name", FIELDS)
def test_a_partition_that_is_a_foreign_table(alias: str, name: str) -> None:
    box = partitioned(alias, "range")
    database = for_connection(box.connection)
    database.execute(
        "CREATE FOREIGN DATA WRAPPER elsewhere",
        "CREATE SERVER elsewhere FOREIGN DATA WRAPPER elsewhere",
        "CREATE FOREIGN TABLE far PARTITION OF boxes_question FOR VALUES FROM ('2027-01-01') TO ('2028-01-01') "
        "SERVER elsewhere",
    )
    try:
        field = box.after(add(name)).apps.get_model("boxes", "question")._meta.get_field("new")
        texts = [each.text for each in database.obstacles(field.model, field)]
        assert any("partition far is a foreign table" in text for text in texts) is (name != "plain")
    finally:
        database.execute("DROP FOREIGN DATA WRAPPER elsewhere CASCADE")


@pytest.fixture
def site(alias: str, worker_id: str) -> Iterator[Callable[[str], None]]:
    """Let the connection have another role, which owns the tables that are made: yields what an administrator runs."""
    role = f"site_{worker_id}"
    with another(alias) as admin, admin.cursor() as cursor:
        cursor.execute(f"CREATE ROLE {role}")
        cursor.execute(f"GRANT CREATE, USAGE ON SCHEMA public TO {role}")
        for_connection(connections[alias]).execute(f"SET ROLE {role}")
        try:
            yield lambda sql: cursor.execute(sql.replace("SITE", role))
        finally:
            connections[alias].close()
            cursor.execute(f"DROP OWNED BY {role} CASCADE")
            cursor.execute(f"DROP ROLE {role}")


@POSTGRESQL
@pytest.mark.parametrize("name", ["an index", "unique"])
def test_no_index_may_be_made_in_the_schema(alias: str, name: str, site: Any) -> None:
    box = filled(alias)
    site("REVOKE CREATE ON SCHEMA public FROM SITE")
    site("REVOKE CREATE ON SCHEMA public FROM public")
    text = refused(box, name)
    assert 'GRANT CREATE ON SCHEMA "public" TO "site' in text
    box.run(AddRequiredField("question", "plain", FIELDS["plain"], "none"))
    site(text[text.index("GRANT") :])
    box.run(AddRequiredField("question", "new", FIELDS[name], lambda row: f"row-{row.pk}"))


@POSTGRESQL
@pytest.mark.parametrize("privilege", ["SELECT", "UPDATE"])
def test_a_user_that_may_not_read_or_write_the_rows(alias: str, privilege: str, site: Any) -> None:
    box = filled(alias)
    site(f"REVOKE {privilege} ON boxes_question FROM SITE")
    (obstacle,) = for_connection(box.connection).obstacles(box.model(), FIELDS["plain"])
    assert f"has no {privilege}" in obstacle.text
    site(obstacle.cure)
    box.run(add("plain"))


@POSTGRESQL
def test_only_the_owner_may_change_a_table(alias: str, site: Any) -> None:
    box = filled(alias)
    site("ALTER TABLE boxes_question OWNER TO CURRENT_USER")
    site("GRANT ALL ON boxes_question TO SITE")
    assert "only the owner of " in refused(box, "plain")


@POSTGRESQL
def test_a_table_that_may_not_be_referred_to(alias: str, site: Any) -> None:
    box = filled(alias)
    site("ALTER TABLE boxes_kind OWNER TO CURRENT_USER")
    site("GRANT SELECT ON boxes_kind TO SITE")
    text = refused(box, "a foreign key")
    site(text[text.index("GRANT REFERENCES") :])
    box.run(add("a foreign key"))
    assert not box.column("new_id").nullable
    assert not box.schema()["not_validated"]


@POSTGRESQL
def test_row_level_security_is_a_warning(alias: str, site: Any) -> None:
    box = filled(alias)
    for_connection(box.connection).execute(
        "ALTER TABLE boxes_question ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
        "CREATE POLICY everything ON boxes_question USING (true)",
    )
    (risk,) = said(look(box, add("plain")), "ow-level security")
    assert not risk.hurts
    box.run(add("plain"))


@SERVERS
def test_a_standby_takes_no_writes(alias: str) -> None:
    box = filled(alias)
    is_mysql = box.connection.vendor == "mysql"
    for_connection(box.connection).execute(
        "SET SESSION TRANSACTION READ ONLY" if is_mysql else "SET default_transaction_read_only = on"
    )
    try:
        assert "the server takes no writes" in refused(box, "plain")
    finally:
        box.connection.close()


COLUMNS = [("integer", "plain"), ("varchar(12)", "plain"), ("varchar(60)", "an index")]


@pytest.mark.parametrize(("column", "name"), COLUMNS)
@pytest.mark.parametrize("rows", [0, 10])
def test_a_column_that_another_attempt_left(alias: str, column: str, name: str, rows: int) -> None:
    box = filled(alias) if rows else MigrationSandbox(alias, KIND, question())
    execute = for_connection(box.connection).execute
    execute(f"ALTER TABLE boxes_question ADD COLUMN new {column} NULL")
    text = refused(box, name, InvalidField)
    assert "has a column new already, of type " in text
    execute(
        "ALTER TABLE boxes_question DROP COLUMN new",
        "ALTER TABLE boxes_question ADD COLUMN new varchar(50) NULL",
    )
    box.run(add(name))
    assert not box.column("new").nullable


class Even(models.IntegerField):
    def db_type(self, connection: Any) -> str:
        return f"even_number_{connection.settings_dict['NAME']}"


@POSTGRESQL
@pytest.mark.parametrize("value", [3, Value(3)], ids=["3", "Value(3)"])
def test_a_constant_that_the_domain_of_the_column_refuses(alias: str, value: Any) -> None:
    """As a default of the guard it would make each INSERT of old code fail."""
    box, name = filled(alias), Even().db_type(connections[alias])
    execute = for_connection(box.connection).execute
    execute(f"CREATE DOMAIN {name} AS integer CHECK (VALUE % 2 = 0)")
    try:
        before = box.schema()
        with pytest.raises(
            InvalidPopulate, match=r"3 does not fit into boxes.Question.new .*violates check constraint"
        ):
            box.run(AddRequiredField("question", "new", Even(), value))
        assert box.schema() == before
        box.run(AddRequiredField("question", "new", Even(), 4))
        assert set(box.values("new")) == {4}
    finally:
        box.connection.close()
        execute(f"DROP DOMAIN {name} CASCADE")


FULL_TEXT = "ALTER TABLE boxes_question ADD FULLTEXT INDEX words (question_text)"


@MARIADB
def test_what_could_be_done_only_by_a_copy_is_tried_on_an_empty_table(alias: str, settings: Any) -> None:
    """A column is added at once beside a full-text index, and made NOT NULL only by a copy."""
    box = filled(alias)
    for_connection(box.connection).execute(FULL_TEXT)
    assert "SAFEMIGRATE_ALLOW_TABLE_COPY = True" in refused(box, "plain", TableCopyNeeded)
    settings.SAFEMIGRATE_ALLOW_TABLE_COPY = True
    box.run(add("plain"))
    assert not box.column("new").nullable


@MARIADB
def test_whatever_the_server_refuses_on_the_empty_table(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    box = filled(alias)
    monkeypatch.setitem(FIELDS, "plain", models.SlugField(db_index=False, db_collation="nonesuch"))
    assert "the server refuses to add the column new" in refused(box, "plain")


@MARIADB
def test_set_not_null_looks_before_it_fills(alias: str) -> None:
    box = filled(alias)
    box.run(AddNullableField("question", "new", FIELDS["plain"]), Populate("question", "new", "none"))
    for_connection(box.connection).execute(FULL_TEXT, "UPDATE boxes_question SET new = NULL")
    with pytest.raises(TableCopyNeeded):
        box.run(SetNotNull("question", "new", FIELDS["plain"]))
    assert set(box.values("new")) == {None}


@MARIADB
@pytest.mark.parametrize("name", ["plain", "an index", "unique", "a foreign key"])
def test_what_is_not_instant_is_done_online(alias: str, name: str) -> None:
    box = MigrationSandbox(alias, KIND, question())
    for_connection(box.connection).execute("ALTER TABLE boxes_question ROW_FORMAT=COMPRESSED")
    box.fill(1 if name == "unique" else 10)
    box.rows("Kind").create(pk=1)
    before, operation = box.state, add(name)
    statements = Statements()
    with connections[alias].execute_wrapper(statements):
        box.run(operation)
    assert not (box.column("new") or box.column("new_id")).nullable
    assert any("`boxes_question` ADD" in text and text.endswith("LOCK=NONE") for text in statements.texts)
    box.undo(operation, before=before)


@pytest.fixture
def plain_user(alias: str, worker_id: str) -> Iterator[tuple[str, Any]]:
    """Yield an alias for a user who has no rights yet, and a cursor of an administrator."""
    given, user = connections[alias].settings_dict, f"plain_{worker_id}"
    with another(alias) as admin, admin.cursor() as cursor:
        cursor.execute(f"CREATE USER {user}@'%'")
        connections.settings["plain"] = given | {"USER": user}
        try:
            yield "plain", cursor
        finally:
            connections["plain"].close()
            del connections["plain"], connections.settings["plain"]
            cursor.execute(f"DROP USER {user}@'%'")


@MARIADB
@pytest.mark.parametrize("privilege", ["INDEX", "ALTER", "SELECT", "UPDATE", "REFERENCES"])
@pytest.mark.parametrize("on", ["the database", "the table"])
def test_a_privilege_that_is_missing(alias: str, privilege: str, on: str, plain_user: Any) -> None:
    box = filled(alias)
    user, admin = plain_user
    name = {"INDEX": "an index", "REFERENCES": "a foreign key"}.get(privilege, "plain")
    rights = {"SELECT", "INSERT", "UPDATE", "CREATE", "DROP", "ALTER", "INDEX", "REFERENCES"} - {privilege}
    database = connections[alias].settings_dict["NAME"]
    target = f"`{database}`.*" if on == "the database" else f"`{database}`.`boxes_question`"
    admin.execute(
        f"GRANT {', '.join(sorted(rights))} ON {target} TO {connections[user].settings_dict['USER']}@'%'"
    )
    if on == "the table":
        rest = f"`{database}`.`boxes_kind` TO {connections[user].settings_dict['USER']}@'%'"
        admin.execute(f"GRANT {'SELECT' if privilege == 'REFERENCES' else 'SELECT, REFERENCES'} ON {rest}")
    field = box.after(add(name)).apps.get_model("boxes", "question")._meta.get_field("new")
    found = list(for_connection(connections[user]).obstacles(field.model, field))
    assert [f"has no {privilege} on " in obstacle.text for obstacle in found] == [True]
    admin.execute(found[0].cure.replace(" ON `", f" ON `{database}`.`"))
    connections[user].close()
    assert not list(for_connection(connections[user]).obstacles(field.model, field))
