"""PostgreSQL: pg_stat_replication, pg_locks, pg_stat_activity, and VACUUM."""

from __future__ import annotations

from typing import Any

from django.db.models import Model

from safemigrate.backends.base.monitoring import Monitoring, one_line, slowest
from safemigrate.backends.postgresql.schema import WITH_PARTITIONS, PostgreSQL
from safemigrate.exceptions import NotVisible

VACUUM_LOCK = "ShareUpdateExclusiveLock"
# Of pg_trigger.tgtype.
FIRES_ON_UPDATE = 16


class PostgreSQLMonitoring(Monitoring):
    keeps_dead_rows = True

    def _own_lag(self) -> float | None:
        self._refuse_unused_slots()
        # Of a replica that has all, replay_lag is what it once was. Of one that no longer answers, too.
        rows = self.fetch(
            "SELECT state, write_lsn IS NOT NULL AND replay_lsn IS NULL, "
            "CASE WHEN replay_lsn >= pg_current_wal_lsn() THEN 0 ELSE extract(epoch FROM greatest("
            "replay_lag, clock_timestamp() - reply_time, interval '0')) END::float8 "
            "FROM pg_stat_replication WHERE state IS DISTINCT FROM 'backup'"
        )
        return slowest(self._lag(*row) for row in rows)

    @staticmethod
    def _lag(state: str | None, only_receives: bool, seconds: float) -> float | None:
        if state is None:
            raise NotVisible(
                "there are replicas, and this user may not see how far they are behind. "
                "Let an administrator grant it the role pg_read_all_stats"
            )
        # pg_receivewal keeps what is written and replays nothing: no query reads from it.
        return None if only_receives else seconds

    def _refuse_unused_slots(self) -> None:
        rows = self.fetch(
            "SELECT slot_name FROM pg_replication_slots WHERE NOT active AND restart_lsn IS NOT NULL ORDER BY 1"
        )
        if rows:
            raise NotVisible(
                f"no replica uses the replication slot {rows[0][0]}: its replica is down. "
                "Start it, or drop the slot if it is no longer needed"
            )

    def _position(self) -> Any:
        return self.fetch("SELECT pg_current_wal_lsn()::text")[0][0]

    def _lag_of_this(self, position: Any) -> float:
        rows = self.fetch(
            "SELECT pg_is_in_recovery(), CASE WHEN pg_last_wal_replay_lsn() >= %s::pg_lsn THEN 0 "
            "ELSE extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) END::float8",
            [position],
        )
        in_recovery, seconds = rows[0]
        if not in_recovery:
            raise NotVisible(f"{self.connection.alias} is in SAFEMIGRATE_REPLICAS and is not a replica")
        if seconds is None:
            raise NotVisible(f"the replica {self.connection.alias} has not replayed a transaction yet")
        return max(float(seconds), 0.0)

    def open_transactions(self, seconds: float) -> list[str]:
        rows = self.fetch(
            "SELECT pid, usename, application_name, state, "
            "date_trunc('second', clock_timestamp() - xact_start)::text, query FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid() "
            "AND backend_type = 'client backend' "
            "AND xact_start < clock_timestamp() - make_interval(secs => %s) ORDER BY xact_start",
            [seconds],
        )
        return [*self._prepared(seconds), *(_transaction(*row) for row in rows)]

    def _prepared(self, seconds: float) -> list[str]:
        rows = self.fetch(
            "SELECT gid, owner, date_trunc('second', clock_timestamp() - prepared)::text FROM pg_prepared_xacts "
            "WHERE database = current_database() AND prepared < clock_timestamp() - make_interval(secs => %s) "
            "ORDER BY prepared",
            [seconds],
        )
        return [f"prepared transaction {gid}, user {owner}, open for {age}" for gid, owner, age in rows]

    def waiting_for(self, model: type[Model]) -> list[str]:
        rows = self.fetch(
            "SELECT a.pid, a.usename, a.application_name, l.mode, a.query "
            "FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid "
            "WHERE NOT l.granted AND l.relation = to_regclass(%s) AND l.pid <> pg_backend_pid() "
            "AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) ORDER BY a.pid",
            [self._table(model)],
        )
        return [
            f"{_who(pid, user, application)}, waits for {mode}: {one_line(query)}"
            for pid, user, application, mode, query in rows
        ]

    def vacuuming(self, model: type[Model]) -> bool:
        # By its lock: which table it is at is in the view for those alone who may see all statistics.
        rows = self.fetch(
            "SELECT 1 FROM pg_stat_progress_vacuum v JOIN pg_locks l ON l.pid = v.pid AND l.database = v.datid "
            "WHERE v.datname = current_database() AND l.relation = to_regclass(%s) "
            "AND l.mode = %s AND l.granted LIMIT 1",
            [self._table(model), VACUUM_LOCK],
        )
        return bool(rows)

    def vacuum(self, model: type[Model]) -> None:
        # TRUNCATE would ask for an exclusive lock, to give back pages that the fill is about to need.
        sql = f"VACUUM (SKIP_LOCKED, TRUNCATE false) {self._table(model)}"
        PostgreSQL(self.connection).run_online((sql,))

    def size(self, model: type[Model]) -> tuple[int | None, int | None]:
        rows = self.fetch(
            "SELECT sum(pg_table_size(oid))::bigint, sum(pg_indexes_size(oid))::bigint FROM pg_class "
            f"WHERE oid IN ({WITH_PARTITIONS})",
            [self._table(model)] * 2,
        )
        return rows[0]

    def triggers(self, model: type[Model]) -> list[str]:
        # Those of some columns alone do not fire: the fill writes none of them.
        rows = self.fetch(
            "SELECT tgname FROM pg_trigger WHERE tgrelid = to_regclass(%s) AND NOT tgisinternal "
            "AND tgenabled <> 'D' AND tgtype & %s <> 0 AND tgattr = '' AND tgname NOT LIKE %s ORDER BY 1",
            [self._table(model), FIRES_ON_UPDATE, "%safemigrate%"],
        )
        return [name for (name,) in rows]

    def fillfactor(self, model: type[Model]) -> int | None:
        rows = self.fetch(
            "SELECT option_value::int FROM pg_class, pg_options_to_table(reloptions) "
            "WHERE oid = to_regclass(%s) AND option_name = 'fillfactor'",
            [self._table(model)],
        )
        return rows[0][0] if rows else 100

    def indexes(self, model: type[Model]) -> int:
        rows = self.fetch(
            "SELECT count(*) FROM pg_index WHERE indrelid = to_regclass(%s)", [self._table(model)]
        )
        return int(rows[0][0])

    def _table(self, model: type[Model]) -> str:
        return self.quote(model._meta.db_table)


def _who(pid: int, user: str, application: str) -> str:
    return f"pid {pid}, user {user}" + (f", application {application}" if application else "")


def _transaction(pid: int, user: str, application: str, state: str, age: str, query: str) -> str:
    return f"{_who(pid, user, application)}, {state}, in a transaction for {age}: {one_line(query)}"
