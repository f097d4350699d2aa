"""SQLite: a file without a server reports on its tables alone."""

from __future__ import annotations

import re

from django.db import OperationalError
from django.db.models import Model

from safemigrate.backends.base.monitoring import Monitoring

UPDATE_TRIGGER = re.compile(r"\bUPDATE\s+ON\b", re.IGNORECASE)


class SQLiteMonitoring(Monitoring):
    def size(self, model: type[Model]) -> tuple[int | None, int | None]:
        table = model._meta.db_table
        indexes = "SELECT name FROM sqlite_master WHERE type = 'index' AND tbl_name = %s"
        try:
            return self._bytes("= %s", table), self._bytes(f"IN ({indexes})", table)
        except OperationalError:
            # The table of sizes is there only when SQLite was compiled with it.
            return None, None

    def _bytes(self, which: str, table: str) -> int:
        sql = f"SELECT COALESCE(SUM(pgsize), 0) FROM dbstat WHERE aggregate = TRUE AND name {which}"
        return int(self.fetch(sql, [table])[0][0])

    def triggers(self, model: type[Model]) -> list[str]:
        rows = self.fetch(
            "SELECT name, sql FROM sqlite_master "
            "WHERE type = 'trigger' AND tbl_name = %s AND name NOT LIKE %s ORDER BY name",
            [model._meta.db_table, "%safemigrate%"],
        )
        return [name for name, sql in rows if UPDATE_TRIGGER.search(sql)]

    def indexes(self, model: type[Model]) -> int:
        return len(self.fetch(f"PRAGMA index_list({self.quote(model._meta.db_table)})"))
