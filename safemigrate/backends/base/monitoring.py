"""The questions asked of a server, with the answers that are safe for any."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from django.db import Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Model

from safemigrate.conf import get
from safemigrate.exceptions import InvalidSetting, NotVisible


class Monitoring:
    """What one connection's server reports of its load. Subclasses know theirs; this one, what Django knows.

    A method raises NotVisible where the server has an answer and does not give it to this user.
    """

    #: Does a row that is written leave its old version in the table, until a vacuum?
    keeps_dead_rows = False

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self.connection: Any = connection  # Each vendor's has attributes of its own.

    # The server

    def replication_lag(self) -> float | None:
        """Return by how many seconds the slowest replica is behind, None where there is none.

        Those named in SAFEMIGRATE_REPLICAS are asked themselves. Raises NotVisible when there is a replica
        whose lag cannot be seen, or one that is down.
        """
        replicas = self._replicas()
        position = self._position() if replicas else None
        return slowest([self._own_lag(), *(self._lag_of(replica, position) for replica in replicas)])

    def open_transactions(self, seconds: float) -> list[str]:
        """Return the other transactions that have been open for longer, one line each, the oldest first."""
        return []

    # A table

    def waiting_for(self, model: type[Model]) -> list[str]:
        """Return who waits for a lock on the model's table now, one line each."""
        return []

    def vacuuming(self, model: type[Model]) -> bool:
        """Is a vacuum at work on the table, be it the server's own?"""
        return False

    def vacuum(self, model: type[Model]) -> None:
        """Make the space of the table's dead rows free for new ones, where the server keeps dead rows.

        Blocks neither readers nor writers, and does nothing when another session holds a lock against it. Must be
        called outside a transaction.
        """

    def size(self, model: type[Model]) -> tuple[int | None, int | None]:
        """Return the bytes of the table, and of all its indexes; None for what is not known."""
        return None, None

    def triggers(self, model: type[Model]) -> list[str]:
        """Return the names of the user's triggers that fire when rows of the table are filled."""
        return []

    def fillfactor(self, model: type[Model]) -> int | None:
        """Return how full, in percent, the server packs a page; None where there is no such thing."""
        return None

    def indexes(self, model: type[Model]) -> int:
        """Return how many indexes the table has, that of the primary key among them."""
        with self.connection.cursor() as cursor:
            found = self.connection.introspection.get_constraints(cursor, model._meta.db_table)
        return sum(bool(c["index"] or c["unique"] or c["primary_key"]) for c in found.values())

    # For the subclasses

    def _own_lag(self) -> float | None:
        """Return what this server itself knows of its replicas' lag."""
        return None

    def _lag_of_this(self, position: Any) -> float:
        """Return how far this server, a replica, is behind `position`, which its primary gave."""
        raise NotVisible(
            f"{self.connection.alias} is on a database that does not report how far it is behind"
        )

    def _position(self) -> Any:
        """Return how far this server, a primary, has written."""
        return None

    def _lag_of(self, replica: Any, position: Any) -> float:
        try:
            return type(self)(replica)._lag_of_this(position)
        except Error as error:
            replica.close()
            raise NotVisible(f"the replica {replica.alias} does not answer: {one_line(error)}") from error

    def _replicas(self) -> list[Any]:
        """Return the connections to the replicas that the project named, as far as they are of this kind."""
        aliases = get("SAFEMIGRATE_REPLICAS")
        if unknown := [alias for alias in aliases if alias not in connections.settings]:
            raise InvalidSetting(f"SAFEMIGRATE_REPLICAS names {unknown[0]!r}, which is not in DATABASES.")
        found = [connections[alias] for alias in aliases]
        return [replica for replica in found if replica.vendor == self.connection.vendor]

    def quote(self, name: str) -> str:
        return str(self.connection.ops.quote_name(name))

    def fetch(self, sql: str, params: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self.connection.cursor() as cursor:
            cursor.execute(sql, params)
            return list(cursor.fetchall())


def slowest(lags: Iterable[float | None]) -> float | None:
    return max((lag for lag in lags if lag is not None), default=None)


def one_line(text: object, limit: int = 80) -> str:
    return " ".join(str(text).split())[:limit]
