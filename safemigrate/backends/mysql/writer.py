"""MySQL and MariaDB: UPDATE joined with the rows of a part of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from safemigrate.backends.base.writer import Write, in_rows
from safemigrate.types import AnyField

ROWS = 1_000
#: Keys that a list of literals is joined with by the index: on any server, and on MariaDB alone.
NUMBERS = {
    "AutoField",
    "BigAutoField",
    "SmallAutoField",
    "IntegerField",
    "BigIntegerField",
    "SmallIntegerField",
    "PositiveIntegerField",
    "PositiveBigIntegerField",
    "PositiveSmallIntegerField",
}
TEXTS = {"CharField", "SlugField", "UUIDField"}


class MySQLWrite(Write):
    def __init__(self, database: Any, target: Any) -> None:
        super().__init__(database, target)
        joined = NUMBERS | TEXTS if self.connection.mysql_is_mariadb else NUMBERS
        self.joins = all(_kind(key) in joined for key in self.keys)

    def __call__(self, keys: Sequence[Any], columns: Sequence[Sequence[Any]]) -> int:
        if not self.joins:
            return super().__call__(keys, columns)
        if not all(map(unites, self.fields, columns)):
            return self.one_by_one(keys, columns)
        values = [*self._adapted(keys), *columns]
        with self.writing(keys), self.connection.cursor() as cursor:
            parts = ([column[n : n + ROWS] for column in values] for n in range(0, len(keys), ROWS))
            return sum(self._update(cursor, part) for part in parts)

    def _update(self, cursor: Any, values: Sequence[Sequence[Any]]) -> int:
        table, first = f"{self.table}.", values[0]
        assignments = ", ".join(
            f"{self._column(field, table)} = "
            + self._assigned(self._column(field, table), f"safemigrate_v{number}", field)
            for number, field in enumerate(self.fields)
        )
        joined = " AND ".join(
            f"{self._column(key, table)} = safemigrate_k{number}" for number, key in enumerate(self.keys)
        )
        cursor.execute(
            f"UPDATE {self.table} JOIN ({self._listed(values)}) AS safemigrate_new ON {joined} "
            f"SET {assignments} "
            f"WHERE {self._column(self.keys[0], table)} BETWEEN %s AND %s AND ({self.todo})",
            [*in_rows(values), first[0], first[-1], *self.todo_params],
        )
        return int(cursor.rowcount)

    def _listed(self, values: Sequence[Sequence[Any]]) -> str:
        names = [f"safemigrate_k{n}" for n in range(len(self.keys))]
        names += [f"safemigrate_v{n}" for n in range(len(self.fields))]
        # Without the word, bytes in a UNION are a text of the connection's character set.
        placed = ["_binary %s" if isinstance(column[0], bytes | bytearray) else "%s" for column in values]
        named = ", ".join(f"{value} AS {name}" for value, name in zip(placed, names, strict=True))
        other = " UNION ALL SELECT " + ", ".join(placed)
        return f"SELECT {named}{other * (len(values[0]) - 1)}"


def _kind(field: AnyField) -> str:
    """Return the type of a key, of a foreign one that of what it refers to."""
    while field.remote_field:
        field = field.target_field
    return str(field.get_internal_type())


def unites(field: AnyField, column: Sequence[Any]) -> bool:
    """Does a UNION keep each value as it is? It makes numbers of several kinds, or scales, into one."""
    types = {*map(type, column)}
    if len(types) > 1 or any(hasattr(kind, "as_sql") for kind in types):
        return False
    return Decimal not in types or _kind(field) == "DecimalField"
