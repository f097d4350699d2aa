"""MySQL and MariaDB: replicas asked one by one, the process list, and what InnoDB reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.db import DatabaseError
from django.db.models import Model

from safemigrate.backends.base.monitoring import Monitoring, one_line
from safemigrate.backends.mysql.blockers import processlist
from safemigrate.exceptions import NotVisible

# 1044 to a database, 1045 at login, 1142 to a table, 1227 for want of a privilege.
DENIED = {1044, 1045, 1142, 1227}
METADATA_WAIT = "Waiting for table metadata lock"


class MySQLMonitoring(Monitoring):
    def replication_lag(self) -> float | None:
        lag = super().replication_lag()
        if lag is None and self._connected_replicas():
            raise NotVisible(
                f"replicas read from {self.connection.alias}, and only they know how far they are behind: "
                "name their aliases in SAFEMIGRATE_REPLICAS"
            )
        return lag

    def _connected_replicas(self) -> int:
        if not self.fetch("SELECT @@log_bin")[0][0]:
            return 0
        if self.connection.mysql_is_mariadb:
            return int(self.fetch("SHOW GLOBAL STATUS LIKE 'Slaves_connected'")[0][1])
        return len(self._privileged("SHOW REPLICAS", "REPLICATION SLAVE"))

    def _lag_of_this(self, position: Any) -> float:
        mariadb = self.connection.mysql_is_mariadb
        sql = "SHOW ALL SLAVES STATUS" if mariadb else "SHOW REPLICA STATUS"
        sources = self._named(sql, "REPLICA MONITOR" if mariadb else "REPLICATION CLIENT")
        alias = self.connection.alias
        if not sources:
            raise NotVisible(f"{alias} is in SAFEMIGRATE_REPLICAS and is not a replica")
        return max(self._behind(row, sql) for row in sources)

    def _behind(self, source: dict[str, Any], sql: str) -> float:
        seconds = source.get("Seconds_Behind_Master", source.get("Seconds_Behind_Source"))
        if seconds is None:
            raise NotVisible(f"replication to {self.connection.alias} does not run: see {sql} there")
        return float(seconds)

    def _named(self, sql: str, privilege: str) -> list[dict[str, Any]]:
        with self.connection.cursor() as cursor:
            self._run(cursor, sql, privilege)
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def _privileged(self, sql: str, privilege: str, params: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self.connection.cursor() as cursor:
            self._run(cursor, sql, privilege, params)
            return list(cursor.fetchall())

    def _run(self, cursor: Any, sql: str, privilege: str, params: Sequence[Any] = ()) -> None:
        try:
            cursor.execute(sql, params)
        except DatabaseError as error:
            if error.args and error.args[0] in DENIED:
                alias = self.connection.alias
                raise NotVisible(
                    f"the user of {alias} may not see it. Let an administrator grant it {privilege} ON *.*"
                ) from error
            raise

    def _see_all(self) -> None:
        """Raise NotVisible where this user sees its own sessions alone: MySQL shows it no others, and says nothing."""
        self._privileged("SELECT COUNT(*) FROM information_schema.innodb_trx", "PROCESS")

    def open_transactions(self, seconds: float) -> list[str]:
        self._see_all()
        rows = self._privileged(
            "SELECT p.id, p.user, p.host, p.command, TIMEDIFF(NOW(), t.trx_started), COALESCE(p.info, '') "
            "FROM information_schema.innodb_trx t "
            f"JOIN {processlist(self.connection)} p ON p.id = t.trx_mysql_thread_id "
            "WHERE p.id <> CONNECTION_ID() AND t.trx_started < NOW() - INTERVAL %s SECOND "
            "ORDER BY t.trx_started",
            "PROCESS",
            [seconds],
        )
        return [
            f"connection {pid}, user {user}@{host}, {command.lower()}, in a transaction for {age}: "
            f"{one_line(query) or 'no statement running'}"
            for pid, user, host, command, age, query in rows
        ]

    def waiting_for(self, model: type[Model]) -> list[str]:
        self._see_all()
        # The server does not report the table that they wait for; their statement names it.
        rows = self._privileged(
            f"SELECT p.id, p.user, p.host, p.state, p.info FROM {processlist(self.connection)} p "
            "LEFT JOIN information_schema.innodb_trx t ON t.trx_mysql_thread_id = p.id "
            "WHERE p.id <> CONNECTION_ID() AND p.db = DATABASE() AND INSTR(p.info, %s) > 0 "
            "AND (p.state = %s OR t.trx_state = 'LOCK WAIT') ORDER BY p.id",
            "PROCESS",
            [model._meta.db_table, METADATA_WAIT],
        )
        return [
            f"connection {pid}, user {user}@{host}, {state.lower() or 'waiting for a row'}: {one_line(query)}"
            for pid, user, host, state, query in rows
        ]

    def size(self, model: type[Model]) -> tuple[int | None, int | None]:
        rows = self.fetch(
            "SELECT data_length, index_length FROM information_schema.tables "
            "WHERE table_schema = DATABASE() AND table_name = %s",
            [model._meta.db_table],
        )
        return rows[0] if rows else (None, None)

    def triggers(self, model: type[Model]) -> list[str]:
        rows = self.fetch(
            "SELECT trigger_name FROM information_schema.triggers WHERE event_object_schema = DATABASE() "
            "AND event_object_table = %s AND event_manipulation = 'UPDATE' AND trigger_name NOT LIKE %s ORDER BY 1",
            [model._meta.db_table, "%safemigrate%"],
        )
        return [name for (name,) in rows]

    def indexes(self, model: type[Model]) -> int:
        with self.connection.cursor() as cursor:
            cursor.execute(f"SHOW INDEX FROM {self.quote(model._meta.db_table)}")
            return len({row[2] for row in cursor.fetchall()})
