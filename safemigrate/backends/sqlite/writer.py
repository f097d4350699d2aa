"""SQLite: one prepared UPDATE by key, executed with all rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from safemigrate.backends.base.writer import Write, are_expressions


class SQLiteWrite(Write):
    def __call__(self, keys: Sequence[Any], columns: Sequence[Sequence[Any]]) -> int:
        if are_expressions(columns):
            return self.one_by_one(keys, columns)
        with self.writing(keys), self.connection.cursor() as cursor:
            cursor.executemany(self._update_by_key(), self._by_key(keys, columns))
            return int(cursor.rowcount)
