"""MySQL and MariaDB: a DEFAULT, or two triggers, before INSERT and before UPDATE."""

from __future__ import annotations

from django.db.models import BinaryField, Model, UUIDField

from safemigrate.backends.base.guards import Guards
from safemigrate.backends.mysql.schema import INSTANT, METADATA, create_trigger, drop_trigger
from safemigrate.exceptions import NoGuard
from safemigrate.schema.steps import Step
from safemigrate.types import AnyField

# Its errors are no reason to refuse the row of a writer that knows nothing of the column.
BODY = (
    "BEGIN DECLARE EXIT HANDLER FOR SQLEXCEPTION SET NEW.{column} = NULL; "
    "IF NEW.{column} IS NULL THEN SET NEW.{column} = {value}; END IF; END"
)
# Version and variant in their places, all else at random. UUID() would reveal the time and the machine.
UUID4 = (
    "LOWER(CONCAT(HEX(RANDOM_BYTES(4)), '-', HEX(RANDOM_BYTES(2)), '-4', SUBSTR(HEX(RANDOM_BYTES(2)), 2), '-', "
    "ELT(1 + FLOOR(RAND() * 4), '8', '9', 'a', 'b'), SUBSTR(HEX(RANDOM_BYTES(2)), 2), '-', HEX(RANDOM_BYTES(6))))"
)
EVENTS = {"insert": "INSERT", "update": "UPDATE"}


class MySQLGuards(Guards):
    alter = METADATA

    def random_uuid(self, field: AnyField) -> str | None:
        if not isinstance(field, UUIDField):
            return None
        native = self.connection.features.has_native_uuid_field
        return f"({UUID4})" if native else f"(REPLACE({UUID4}, '-', ''))"

    def refuse(self, model: type[Model], sql: str) -> None:
        super().refuse(model, sql)
        key = model._meta.auto_field
        if key is not None and key in self.read(model, sql):
            raise NoGuard(
                f"{key.name} is given its number by {self.connection.display_name} only "
                "after a trigger could use it"
            )

    def constant(self, model: type[Model], field: AnyField, sql: str) -> list[Step]:
        if isinstance(field, BinaryField):
            # Its default could not be read back, to be kept when the column is made required.
            return self.expression(model, field, sql)
        return self.default_steps(model, field, f"({sql})", f", {INSTANT}")

    def expression(self, model: type[Model], field: AnyField, sql: str) -> list[Step]:
        body = BODY.format(column=self.quote(field.column), value=self.row(model, sql))
        return [
            create_trigger(
                self.database,
                model,
                self.name(model, field, ending, limit=64),
                f"BEFORE {event}",
                body,
                f"guard {field.column}: new rows get the same expression (on {event})",
            )
            for ending, event in EVENTS.items()
        ]

    def down(self, model: type[Model], field: AnyField) -> list[Step]:
        title = f"take the guard of {field.column} away: a trigger"
        names = [self.name(model, field, ending, limit=64) for ending in EVENTS]
        triggers = [drop_trigger(self.database, model, name, title) for name in names]
        return [*self.drop_default(model, field, f", {INSTANT}"), *triggers]
