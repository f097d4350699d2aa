"""PostgreSQL: what this user, on this table, will be refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from django.db.models import Model

from safemigrate.schema.steps import Obstacle
from safemigrate.types import AnyField

if TYPE_CHECKING:
    from safemigrate.backends.postgresql.schema import PostgreSQL

RIGHTS = """
SELECT current_user::text, pg_get_userbyid(c.relowner)::text, n.nspname::text, pg_get_partkeydef(c.oid),
    pg_has_role(c.relowner, 'USAGE'), has_schema_privilege(c.relnamespace, 'CREATE'),
    has_any_column_privilege(c.oid, 'SELECT'), has_any_column_privilege(c.oid, 'UPDATE'), row_security_active(c.oid),
    current_setting('transaction_read_only') = 'on', (SELECT min(p.oid::regclass::text) FROM pg_partition_tree(c.oid) t
    JOIN pg_class p ON p.oid = t.relid AND p.relkind = 'f')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = to_regclass(%s)
"""
MAY_NOT_REFER = (
    "SELECT 1 FROM pg_class WHERE oid = to_regclass(%s) AND NOT has_any_column_privilege(oid, 'REFERENCES')"
)


class Rights(NamedTuple):
    """What this user may do with a table, and how it is partitioned, if it is."""

    user: str
    owner: str
    schema: str
    partitioned_by: str | None
    owns: bool
    creates: bool
    selects: bool
    updates: bool
    sees_some: bool
    read_only: bool
    foreign_partition: str | None


def found(database: PostgreSQL, model: type[Model], field: AnyField) -> Iterator[Obstacle]:
    """Return what will be refused, by one look into the catalogue, and one for a foreign key."""
    table, *others = database.tables(model, field)
    for row in database.fetch(RIGHTS, [table]):
        rights = Rights(*row)
        user = database.quote(rights.user)
        yield from _of_the_server(table, field, rights)
        yield from _of_the_table(table, database.quote(rights.owner), user, rights)
        indexed = field.unique or database.editor()._field_indexes_sql(model, field)
        if rights.foreign_partition and (indexed or others):
            yield Obstacle(
                f"the partition {rights.foreign_partition} is a foreign table, on which no index or foreign key can be "
                f"made, and {field.name} has one.",
                "Detach that partition, or add the field with db_index=False, unique=False and db_constraint=False.",
            )
        if indexed and not rights.creates:
            yield Obstacle(
                f"the user {rights.user} may make no index in the schema {rights.schema}, and {field.name} has one.",
                f"GRANT CREATE ON SCHEMA {database.quote(rights.schema)} TO {user};",
            )
        for other in others:
            if database.fetch(MAY_NOT_REFER, [other]):
                yield Obstacle(
                    f"the user {rights.user} may let no foreign key refer to {other}.",
                    f"GRANT REFERENCES ON {other} TO {user};",
                )


def _of_the_server(table: str, field: AnyField, rights: Rights) -> Iterator[Obstacle]:
    if rights.read_only:
        yield Obstacle(
            "the server takes no writes: it is a standby, or transactions are read-only.",
            "Let this alias of DATABASES name the primary.",
        )
    if field.unique and rights.partitioned_by:
        yield Obstacle(
            f"{table} is partitioned by {rights.partitioned_by}, and PostgreSQL keeps only what contains the partition "
            f"key unique over all partitions: {field.column} alone cannot be unique.",
            f"Take unique=True from the field, and add a UniqueConstraint of {field.name} and the partition key in a "
            "migration of its own.",
        )


def _of_the_table(table: str, owner: str, user: str, rights: Rights) -> Iterator[Obstacle]:
    if not rights.owns:
        yield Obstacle(
            f"only the owner of {table}, {rights.owner}, may change it, and the user is {rights.user}.",
            f"Run migrate as {rights.owner}, or make the user a member of that role: GRANT {owner} TO {user};",
        )
    for privilege, has in (("SELECT", rights.selects), ("UPDATE", rights.updates)):
        if not has:
            yield Obstacle(
                f"the user {rights.user} has no {privilege} on {table}, and could not fill it.",
                f"GRANT {privilege} ON {table} TO {user};",
            )
    if rights.sees_some:
        yield Obstacle(
            f"row-level security of {table} holds for the user {rights.user}: rows that its policies hide are not "
            "filled, and NOT NULL is refused because of them.",
            "Run migrate as a user with BYPASSRLS, unless the policies show it all rows.",
            certain=False,
        )
