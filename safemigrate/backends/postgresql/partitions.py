"""PostgreSQL's partitioned tables: what is to stand on all of one is made on each partition, then on the whole.

The server builds no index CONCURRENTLY on the whole, and before 18 it adds no foreign key there without a look at all
rows under its lock. Built on each partition and then attached, both are made while writers pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from django.db.models import Model

from safemigrate.backends.base.schema import short_name
from safemigrate.schema.steps import Lock, Step

if TYPE_CHECKING:
    from safemigrate.backends.postgresql.schema import PostgreSQL

SHARE = Lock("SHARE on the partitioned table alone", "writers")
ATTACH = Lock("ACCESS EXCLUSIVE on the partition's index", "everyone")

TREE = """
SELECT t.relid::oid, t.isleaf, n.nspname, c.relname, t.parentrelid::oid FROM pg_partition_tree(to_regclass(%s)) t
JOIN pg_class c ON c.oid = t.relid JOIN pg_namespace n ON n.oid = c.relnamespace ORDER BY t.level, n.nspname, c.relname
"""

# The index of a name on a table: is it valid, and attached to that of the table's parent? And: is the table's part in
# the whole index done, under whatever name? A partition that is new since then brings an index of its own.
STATE = """
SELECT (SELECT ARRAY[x.indisvalid, i.relispartition] FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
        WHERE x.indrelid = %s AND i.relname = %s),
    EXISTS (SELECT FROM pg_partition_tree(to_regclass(%s)) t JOIN pg_index x ON x.indexrelid = t.relid
            WHERE x.indrelid = %s AND x.indisvalid)
"""


@dataclass(frozen=True)
class Partition:
    """A table of the tree, the whole one among them."""

    oid: int
    is_leaf: bool
    schema: str
    name: str
    parent: int | None


def tree(database: PostgreSQL, model: type[Model]) -> list[Partition]:
    """Return the model's table and all its partitions, each after its parent; nothing where it has none."""
    rows = database.fetch(TREE, [database.quote(model._meta.db_table)])
    found = [Partition(*row) for row in rows]
    return found if found and not found[0].is_leaf else []


def index_steps(
    database: PostgreSQL, tables: list[Partition], column: str, name: str, definition: str
) -> list[Step]:
    """Return the steps that index all tables of a tree, as `name` on the whole.

    Writers wait for the whole table's SHARE lock, an instant, and everyone for each attaching, another one; the
    partitions are read while writers pass. Stopped anywhere, they carry on.
    """
    root, *partitions = tables
    names = {each.oid: name if each is root else short_name(each.name, name, suffix="idx") for each in tables}
    whole = qualified(database, root.schema, name)

    def state(table: Partition) -> tuple[bool | None, bool]:
        """Return whether its own index is valid (None: not there), and whether nothing is left to do for it."""
        ((own, done),) = database.fetch(STATE, [table.oid, names[table.oid], whole, table.oid])
        return (own[0], done or own[1]) if own else (None, done)

    def quoted(table: Partition) -> tuple[str, ...]:
        return (qualified(database, table.schema, table.name),)

    def split(table: Partition) -> Step:
        sql = f"CREATE INDEX {database.quote(names[table.oid])} ON ONLY {quoted(table)[0]} {definition}"
        return Step(
            f"index {column} as {names[table.oid]}, of {table.name} without its partitions",
            (sql,),
            SHARE,
            tables=quoted(table),
            needed=lambda: state(table) == (None, False),
        )

    def leaf(table: Partition) -> list[Step]:
        index = names[table.oid]
        drop = f"DROP INDEX CONCURRENTLY IF EXISTS {qualified(database, table.schema, index)}"
        build = f"CREATE INDEX CONCURRENTLY {database.quote(index)} ON {quoted(table)[0]} {definition}"
        return [
            database.online(
                quoted(table),
                f"drop what a failed attempt left of {index}",
                drop,
                needed=lambda: state(table) == (False, False),
            ),
            database.online(
                quoted(table),
                f"index {column} of {table.name} as {index}",
                build,
                needed=lambda: state(table) == (None, False),
            ),
        ]

    def attach(table: Partition) -> Step:
        parent = next(each for each in tables if each.oid == table.parent)
        above = qualified(database, parent.schema, names[parent.oid])
        own = qualified(database, table.schema, names[table.oid])
        return Step(
            f"attach {names[table.oid]} to {names[parent.oid]}",
            (f"ALTER INDEX {above} ATTACH PARTITION {own}",),
            ATTACH,
            tables=quoted(table),
            needed=lambda: not state(table)[1],
        )

    return [
        *(split(table) for table in tables if not table.is_leaf),
        *(step for table in partitions if table.is_leaf for step in leaf(table)),
        *(attach(table) for table in reversed(partitions)),
    ]


def qualified(database: PostgreSQL, schema: str, name: str) -> str:
    return f"{database.quote(schema)}.{database.quote(name)}"
