"""MySQL and MariaDB: a DEFAULT, or two triggers, before INSERT and before UPDATE."""

from __future__ import annotations

import re

from django.db.models import BinaryField, CharField, DecimalField, IntegerField, Model, UUIDField

from safemigrate.backends.base.guards import WRITES, Events, Guards
from safemigrate.backends.mysql.schema import INSTANT, METADATA, create_trigger, drop_trigger
from safemigrate.exceptions import NoGuard
from safemigrate.schema.steps import Step
from safemigrate.types import AnyField

# Its errors are no reason to refuse the row of a writer that knows nothing of the column.
BODY = (
    "BEGIN DECLARE EXIT HANDLER FOR SQLEXCEPTION SET NEW.{column} = NULL; "
    "IF NEW.{column} IS NULL THEN SET NEW.{column} = {value}; {checks}END IF; END"
)
CHECKS = "IF {refused} THEN SET NEW.{column} = NULL; END IF; "
# Version and variant in their places, all else at random. UUID() would reveal the time and the machine.
UUID4 = (
    "LOWER(CONCAT(HEX(RANDOM_BYTES(4)), '-', HEX(RANDOM_BYTES(2)), '-4', SUBSTR(HEX(RANDOM_BYTES(2)), 2), '-', "
    "ELT(1 + FLOOR(RAND() * 4), '8', '9', 'a', 'b'), SUBSTR(HEX(RANDOM_BYTES(2)), 2), '-', HEX(RANDOM_BYTES(6))))"
)
# What is not the same in each mode of SQL, or in each character set.
SPECIAL = re.compile(r"[^ -~]|[\\'\"]")
NO_TRIGGER = (
    "the user of this connection may create none (the privilege TRIGGER; SUPER, or log_bin_trust_function_creators = "
    "1, where there is a binary log)"
)
LITERAL = re.compile(r"-?\d+(\.\d+)?|'[ !#-&(-\[\]-~]*'")


class MySQLGuards(Guards):
    alter = METADATA
    ending = f", {INSTANT}"

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

    def constant(self, model: type[Model], field: AnyField, sql: str, events: Events) -> list[Step]:
        if isinstance(field, BinaryField):
            # Its default could not be read back, to be kept when the column is made required.
            return self.expression(model, field, sql, events)
        return self.default_steps(model, field, self.defaults(field, sql)[-1])

    def defaults(self, field: AnyField, sql: str) -> list[str]:
        # A column that is added with a literal costs nothing; an expression may make the server write all rows.
        expression = self._unambiguous(field, sql)
        literals = [sql] if LITERAL.fullmatch(sql) else []
        if not self.connection.mysql_is_mariadb:  # It would give a new line back as the letters x0A.
            texts = re.findall(r"^CONVERT\((X'\w*') USING utf8mb4\)$", expression)
            literals += [f"_utf8mb4 {text}" for text in texts]
        return [*literals, f"({expression})"]

    def _unambiguous(self, field: AnyField, sql: str) -> str:
        """Return a text as an expression of plain letters, where the server would not give it back as it was.

        The default is read back when the column is made required: modes of SQL differ on backslashes, and MariaDB
        gives back no character beyond the first 65,536. MySQL takes an expression alone for a column of long texts.
        """
        long = field.db_type(self.connection) in ("longtext", "json") and not self.connection.mysql_is_mariadb
        if not sql.startswith("'") or not (long or SPECIAL.search(sql[1:-1])):
            return sql
        ((text,),) = self.database.fetch(f"SELECT HEX(CONVERT({sql.replace('%', '%%')} USING utf8mb4))", [])
        return f"CONVERT(X'{text}' USING utf8mb4)"

    def expression(self, model: type[Model], field: AnyField, sql: str, events: Events) -> list[Step]:
        if self.may_create_triggers():
            return self.triggers(model, field, sql, events)
        return self._by_default(model, field, sql)

    def triggers(self, model: type[Model], field: AnyField, sql: str, events: Events) -> list[Step]:
        if not self.may_create_triggers():
            raise NoGuard(f"it takes a trigger, and {NO_TRIGGER}")
        column, refused = self.quote(field.column), self.is_refused(model, field)
        checks = refused and CHECKS.format(column=column, refused=refused)
        body = BODY.format(column=column, value=self.row(model, sql), checks=checks)
        return [
            create_trigger(
                self.database,
                model,
                self.name(model, field, event, limit=64),
                f"BEFORE {event.upper()}",
                body,
                f"guard {field.column}: new rows get the same expression (on {event.upper()})",
            )
            for event in events
        ]

    def may_create_triggers(self) -> bool:
        """May this user create one: has it the privilege, and SUPER where the server keeps a binary log?"""
        grants = " ".join(line for (line,) in self.database.fetch("SHOW GRANTS"))
        logged, trusted = self.database.fetch("SELECT @@log_bin, @@log_bin_trust_function_creators")[0]
        if logged and not trusted and not re.search(r"\bSUPER\b|\bALL PRIVILEGES ON \*\.\*", grants):
            return False
        return re.search(r"\bTRIGGER\b|\bALL PRIVILEGES\b", grants) is not None

    def _by_default(self, model: type[Model], field: AnyField, sql: str) -> list[Step]:
        """Guard by a default that reads the row's other columns, which needs no privilege and outlives NOT NULL."""
        if re.search(r"\bSELECT\b", sql):
            raise NoGuard(f"it reads another table, which takes a trigger, and {NO_TRIGGER}")
        own = sql.replace(f"{self.quote(model._meta.db_table)}.", "")
        column = self.quote(field.column)
        checks = [
            check.sql.replace(column, f"({own})") for check in self.database.checks(model, field.column)
        ]
        if conditions := " AND ".join([*self._fitting(field, f"({own})"), *checks]):
            own = f"IF(COALESCE({conditions}, TRUE), {own}, NULL)"
        return self.default_steps(model, field, f"({own})")

    def _fitting(self, field: AnyField, value: str) -> list[str]:
        """Return the SQL of what the type of the column asks of a value: a default that it refuses fails the row."""
        if isinstance(field, CharField) and field.max_length is not None:
            return [f"CHAR_LENGTH({value}) <= {field.max_length}"]
        if isinstance(field, DecimalField):
            whole = (field.max_digits or 0) - (field.decimal_places or 0)
            return [f"ABS({value}) < {10**whole}"]
        if isinstance(field, IntegerField):
            low, high = self.connection.ops.integer_field_range(field.get_internal_type())
            return [f"{value} BETWEEN {low} AND {high}"]
        return []

    def names(self, model: type[Model], field: AnyField) -> set[str]:
        return {self.name(model, field, event, limit=64) for event in WRITES}

    def drop_triggers(self, model: type[Model], field: AnyField) -> list[Step]:
        title = f"take the guard of {field.column} away: a trigger"
        names = sorted(self.names(model, field))
        return [drop_trigger(self.database, model, name, title) for name in names]
