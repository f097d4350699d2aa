"""MySQL and MariaDB: what this user, on this table, will be refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from django.db import DatabaseError, Error
from django.db.models import Model, QuerySet

from safemigrate.backends.base.schema import error_code, short_name
from safemigrate.conf import get
from safemigrate.exceptions import TableCopyNeeded
from safemigrate.schema.steps import COPY_CURE, Obstacle
from safemigrate.types import AnyField

if TYPE_CHECKING:
    from safemigrate.backends.mysql.schema import MySQL

#: Another process tries the same on a table of that name: exists, unknown, column or key twice, no such table.
BESIDE = {1050, 1051, 1060, 1061, 1146}

#: The server, or the session's transactions, are read-only.
READ_ONLY = {1290, 1792, 1836}

#: What is granted to a user on a table, or on all of its database or server.
RIGHTS = """
SELECT privilege_type FROM information_schema.user_privileges WHERE grantee = %s
UNION SELECT privilege_type FROM information_schema.schema_privileges
    WHERE grantee = %s AND DATABASE() LIKE table_schema
UNION SELECT privilege_type FROM information_schema.table_privileges
    WHERE grantee = %s AND table_schema = DATABASE() AND table_name = %s
"""


def found(database: MySQL, model: type[Model], field: AnyField) -> Iterator[Obstacle]:
    """Return the rights that are not there, and what could be done only by a copy, of a table that has rows."""
    with database.impatient(model):
        try:
            if not QuerySet(model, using=database.connection.alias).exists():
                return  # Nothing is lost where a step is refused on an empty table.
        except DatabaseError as error:
            if not (database.is_lock_timeout(error) or database.is_denied(error)):
                raise
        yield from _missing_rights(database, model, field)
        if not get("SAFEMIGRATE_ALLOW_TABLE_COPY"):
            with database.strict():
                yield from _rehearsed(database, model, field)


def _missing_rights(database: MySQL, model: type[Model], field: AnyField) -> Iterator[Obstacle]:
    ((user, role),) = database.fetch("SELECT CURRENT_USER(), CURRENT_ROLE()")
    if role not in (None, "NONE"):
        return  # What a role gives is shown to those alone who may read the system's tables.
    indexed = bool(database.editor()._field_indexes_sql(model, field))
    wanted = [(model, ["SELECT", "UPDATE", "ALTER", *(["INDEX"] if indexed else [])])]
    if field.remote_field and field.db_constraint:
        wanted.append((field.remote_field.model, ["REFERENCES"]))
    grantee = "'{}'@'{}'".format(*user.rpartition("@")[::2])
    for each, privileges in wanted:
        table = each._meta.db_table
        has = {name for (name,) in database.fetch(RIGHTS, [grantee, grantee, grantee, table])}
        for privilege in privileges if has else []:
            if privilege not in has:
                yield Obstacle(
                    f"the user {grantee} has no {privilege} on {database.quote(table)}.",
                    f"GRANT {privilege} ON {database.quote(table)} TO {grantee};",
                )


def _rehearsed(database: MySQL, model: type[Model], field: AnyField) -> Iterator[Obstacle]:
    """Try the steps on an empty table that is made like the model's, and dropped again.

    Whether the server can do them online depends on the table's format, its full-text indexes, its history.
    """
    try:
        yield from _tried(database, model, field)
    except DatabaseError as error:
        if error_code(error) not in READ_ONLY:
            raise
        yield Obstacle(
            f"the server takes no writes: it is a replica, or transactions are read-only. It says: {error}.",
            "Let this alias of DATABASES name the primary.",
        )


def _tried(database: MySQL, model: type[Model], field: AnyField) -> Iterator[Obstacle]:
    table = database.quote(model._meta.db_table)
    requirement = database.require(model, model, field)
    steps = [*database.add_column(model, field), *requirement.before, *requirement.enforce[:1]]
    with empty_copy(database, model) as copy:
        try:
            for step in steps if copy else ():
                for statement in step.statements if step.needed() else ():
                    database.run_alter(statement.replace(table, str(copy), 1))
        except DatabaseError as error:
            if database.is_copy_refused(error):
                yield Obstacle(
                    f"the server cannot {step.title} without copying the table, which blocks all writers while it "
                    f"runs. It says: {error}.",
                    COPY_CURE,
                    error=TableCopyNeeded,
                )
            elif not (
                database.is_denied(error) or database.is_transient(error) or error_code(error) in BESIDE
            ):
                yield Obstacle(f"the server refuses to {step.title}. It says: {error}.", "Change the field.")


@contextmanager
def empty_copy(database: MySQL, model: type[Model]) -> Iterator[str | None]:
    """Run with an empty table made like the model's, and give its quoted name; None where none can be made.

    This user may make no table, or another session holds the model's: the steps themselves will say. Raises the
    server's error where it takes no writes at all.
    """
    copy = database.quote(short_name(model._meta.db_table, suffix="safemigrate_try", limit=64))
    table = database.quote(model._meta.db_table)
    try:
        database.execute(f"DROP TABLE IF EXISTS {copy}", f"CREATE TABLE {copy} LIKE {table}")
    except DatabaseError as error:
        if error_code(error) in READ_ONLY:
            raise
        yield None
        return
    try:
        yield copy
    finally:
        with suppress(Error):  # The connection may be what was lost.
            database.execute(f"DROP TABLE IF EXISTS {copy}")
