"""PostgreSQL: a DEFAULT, or a trigger that runs before the row is stored and only where it has no value."""

from __future__ import annotations

from django.db.models import Model, UUIDField

from safemigrate.backends.base.guards import Events, Guards
from safemigrate.backends.postgresql.schema import EXCLUSIVE
from safemigrate.schema.steps import Lock, Step
from safemigrate.types import AnyField

# Its errors are no reason to refuse the row of a writer that knows nothing of the column.
BODY = """
BEGIN
    NEW.{column} := {value};{checks}
    RETURN NEW;
EXCEPTION WHEN OTHERS THEN
    NEW.{column} := NULL;
    RETURN NEW;
END
"""
CHECKS = """
    IF {refused} THEN
        NEW.{column} := NULL;
    END IF;"""


#: Of `pg_trigger.tgtype`.
BITS = {"insert": 4, "update": 16}


class PostgreSQLGuards(Guards):
    alter = EXCLUSIVE
    create = Lock("SHARE ROW EXCLUSIVE on the table", "writers")

    def random_uuid(self, field: AnyField) -> str | None:
        return "gen_random_uuid()" if isinstance(field, UUIDField) else None

    def constant(self, model: type[Model], field: AnyField, sql: str, events: Events) -> list[Step]:
        return self.default_steps(model, field, sql)

    def triggers(self, model: type[Model], field: AnyField, sql: str, events: Events) -> list[Step]:
        table, column = self.quote(model._meta.db_table), self.quote(field.column)
        refused = self.is_refused(model, field)
        checks = refused and CHECKS.format(column=column, refused=refused)
        body = BODY.format(column=column, value=self.row(model, sql), checks=checks)
        function, trigger = self._function(model, field), self.quote(self._name(model, field))
        tag = self._tag(body)
        create_function = (
            f"CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql "
            # A text made of a moment, or its day, depends on the zone: the backfill's, not the inserting session's.
            f"SET search_path FROM CURRENT SET timezone FROM CURRENT AS {tag}{body}{tag}"
        )
        create_trigger = (
            f"CREATE OR REPLACE TRIGGER {trigger} BEFORE {' OR '.join(events).upper()} ON {table} FOR EACH ROW "
            f"WHEN (NEW.{column} IS NULL) EXECUTE FUNCTION {function}()"
        )
        return [
            Step(
                f"guard {field.column}: new rows get the same expression",
                (create_function, create_trigger),
                self.create,
                tables=(table,),
                needed=lambda: self._what_is_up(model, field) != (body, set(events)),
            )
        ]

    def names(self, model: type[Model], field: AnyField) -> set[str]:
        return {self._name(model, field)}

    def drop_triggers(self, model: type[Model], field: AnyField) -> list[Step]:
        table = self.quote(model._meta.db_table)
        trigger, function = self.quote(self._name(model, field)), self._function(model, field)
        drop = Step(
            f"take the guard of {field.column} away: its trigger",
            (f"DROP TRIGGER IF EXISTS {trigger} ON {table}", f"DROP FUNCTION IF EXISTS {function}()"),
            self.alter,
            tables=(table,),
            needed=lambda: self._function_exists(model, field),
        )
        return [drop]

    def _name(self, model: type[Model], field: AnyField) -> str:
        # Triggers run in the order of their names: what others put into the row is there before this one.
        return f"zz_{self.name(model, field, limit=60)}"

    def _function(self, model: type[Model], field: AnyField) -> str:
        """Return the function's name, in the schema of the table."""
        rows = self.database.fetch(
            "SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE c.oid = to_regclass(%s)",
            [self.quote(model._meta.db_table)],
        )
        return ".".join(
            self.quote(part) for part in [*(schema for (schema,) in rows), self._name(model, field)]
        )

    def _function_exists(self, model: type[Model], field: AnyField) -> bool:
        return bool(self.database.fetch("SELECT to_regproc(%s)", [self._function(model, field)])[0][0])

    def _what_is_up(self, model: type[Model], field: AnyField) -> tuple[str, set[str]] | None:
        """Return what the guard that is up does, and at which events; None where there is none."""
        rows = self.database.fetch(
            "SELECT p.prosrc, t.tgtype FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid "
            "WHERE t.tgrelid = to_regclass(%s) AND t.tgname = %s AND p.oid = to_regproc(%s)",
            [self.quote(model._meta.db_table), self._name(model, field), self._function(model, field)],
        )
        return (rows[0][0], {event for event, bit in BITS.items() if rows[0][1] & bit}) if rows else None

    @staticmethod
    def _tag(body: str) -> str:
        tag = "$guard$"
        while tag in body:
            tag = f"${tag.strip('$')}_$"
        return tag
