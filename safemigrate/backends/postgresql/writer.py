"""PostgreSQL: one UPDATE from the rows of a batch, sent as an array of text for each column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from safemigrate.backends.base.writer import Write, are_expressions, in_rows
from safemigrate.backends.postgresql.arrays import array

# The protocol counts parameters in 16 bits.
PARAMETERS = 60_000


class PostgreSQLWrite(Write):
    def __init__(self, database: Any, target: Any) -> None:
        super().__init__(database, target)
        self.names = [f"k{n}" for n in range(len(self.keys))] + [f"v{n}" for n in range(len(self.fields))]
        types = self._types()
        self.repeated = database.repeated_columns(target.model, target.names)
        self.casts = [types[as_stored(field.column)] for field in (*self.keys, *self.fields)]

    def __call__(self, keys: Sequence[Any], columns: Sequence[Sequence[Any]]) -> int:
        values = [*self._adapted(keys), *columns]
        arrays = [array(column) for column in values]
        with self.writing(keys), self.connection.cursor() as cursor:
            if None not in arrays:
                return self._update(cursor, self._unnested(), arrays, values[0])
            if are_expressions(columns):
                return self.one_by_one(keys, columns)
            size = PARAMETERS // len(values)
            parts = [[column[n : n + size] for column in values] for n in range(0, len(keys), size)]
            return sum(
                self._update(cursor, self._listed(len(part[0])), in_rows(part), part[0]) for part in parts
            )

    def _update(self, cursor: Any, source: str, params: Sequence[Any], keys: Sequence[Any]) -> int:
        table = f"{self.table}."
        assignments = ", ".join(
            f"{self._column(field)} = {self._assigned(self._column(field, table), f'n.v{number}', field)}"
            for number, field in enumerate(self.fields)
        )
        assignments += "".join(f", {self.quote(name)} = {table}{self.quote(name)}" for name in self.repeated)
        joined = " AND ".join(
            f"{self._column(key, table)} = n.k{number}" for number, key in enumerate(self.keys)
        )
        cursor.execute(
            f"UPDATE {self.table} SET {assignments} FROM {source} "
            # Bounded on both sides of the join, or the planner reads the whole table for every batch.
            f"WHERE {joined} AND {self._column(self.keys[0], table)} BETWEEN %s AND %s AND ({self.todo})",
            [*params, keys[0], keys[-1], *self.todo_params],
        )
        return int(cursor.rowcount)

    def _unnested(self) -> str:
        """Return the rows as arrays of text, which no driver has to take apart and quote one by one."""
        made = ", ".join(
            f"{name}::{cast} AS {name}" for name, cast in zip(self.names, self.casts, strict=True)
        )
        texts = ", ".join(["%s::text[]"] * len(self.names))
        return f"(SELECT {made} FROM unnest({texts}) AS u ({', '.join(self.names)})) AS n"

    def _listed(self, rows: int) -> str:
        row = "(" + ", ".join(f"(%s)::{cast}" for cast in self.casts) + ")"
        return f"(VALUES {', '.join([row] * rows)}) AS n ({', '.join(self.names)})"

    def _types(self) -> dict[str, str]:
        """Return the type of each column without its limits: an explicit cast cuts to them what is to be refused.

        Of a domain, the type behind it. With -1 a character is bpchar and a bit "bit", which have no limit.
        """
        with self.connection.cursor() as cursor:
            cursor.execute(
                "SELECT attname, format_type(CASE typtype WHEN 'd' THEN typbasetype ELSE t.oid END, -1) "
                "FROM pg_attribute a JOIN pg_type t ON t.oid = atttypid "
                "WHERE attrelid = to_regclass(%s) AND attnum > 0",
                [self.table],
            )
            return dict(cursor.fetchall())


def as_stored(name: str) -> str:
    """Return a name as the server keeps it, which cuts it to 63 bytes."""
    return name.encode()[:63].decode(errors="ignore")
