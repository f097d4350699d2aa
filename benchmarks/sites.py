"""The example as a site in the middle of a deploy: a full table, the code of before the field, and the new code."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.db.utils import ConnectionHandler

from benchmarks.seeds import TABLE, seed
from tools.demo import CHANGED, EXAMPLE, OURS, ROOT, copy_project_before

BEFORE = "0002_alter_question_pub_date"
NULLABLE = "0003_question_nullable"
ADD_NULLABLE = """\
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("polls", "{before}")]
    operations = [migrations.AddField("question", "{name}", {field})]
"""


@dataclass(frozen=True)
class Column:
    """What the field's column holds in the end: a condition of the rows that are wrong, by vendor.

    Where old code knows it as nullable, `nullable` is the field as it has it, and `half` fills every second row.
    """

    name: str
    wrong: Mapping[str, str]
    nullable: str = ""
    half: Mapping[str, str] = field(default_factory=dict)
    required: bool = False


WRONG = {
    "postgresql": "expires_date IS DISTINCT FROM pub_date + interval '30 days'",
    "mysql": "NOT expires_date <=> pub_date + INTERVAL 30 DAY",
    "sqlite": "expires_date IS NOT datetime(pub_date, '+30 days')",
}
EXPIRES = Column("expires_date", WRONG)
KNOWN_EXPIRES = Column(
    "expires_date",
    WRONG,
    'models.DateTimeField("expires at", null=True)',
    {
        "postgresql": f"UPDATE {TABLE} SET expires_date = pub_date + interval '30 days' WHERE id % 2 = 0",
        "mysql": f"UPDATE {TABLE} SET expires_date = pub_date + INTERVAL 30 DAY WHERE id % 2 = 0",
    },
)
# A row that is wrong is NULL, and no NOT NULL column has one.
PHONE = Column(
    "phone",
    dict.fromkeys(("postgresql", "mysql"), "phone IS NULL OR phone NOT IN ('', '+44 20 7946 0000')"),
    "models.CharField(max_length=20, null=True)",
    dict.fromkeys(("postgresql", "mysql"), f"UPDATE {TABLE} SET phone = '+44 20 7946 0000' WHERE id % 2 = 0"),
    required=True,
)


class Site:
    """Two copies of the example in a folder, both on one database: the old code, and the new."""

    def __init__(self, folder: Path, url: str, column: Column = EXPIRES) -> None:
        self.url, self.column = url, column
        self.old, self.new = folder / "old", folder / "new"
        copy_project_before(self.old)
        copy_project_before(self.new)
        if column.name == EXPIRES.name:
            for name in CHANGED:
                shutil.copy(EXAMPLE / name, self.new / name)
        else:
            self._write_field(self.new, column.nullable.replace(", null=True", ""))
        if column.nullable:
            self._write_field(self.old, column.nullable)
            text = ADD_NULLABLE.format(before=BEFORE, name=column.name, field=column.nullable)
            for project in (self.old, self.new):
                (project / f"polls/migrations/{NULLABLE}.py").write_text(text)

    def _write_field(self, project: Path, definition: str) -> None:
        models = project / "polls/models.py"
        line = 'pub_date = models.DateTimeField("date published")\n'
        before, after = models.read_text().split(line)
        models.write_text(f"{before}{line}    {self.column.name} = {definition}\n{after}")

    def fill(self, rows: int) -> None:
        """Make the table as it is before the change, with this many rows."""
        self.must(self.old, "migrate", "-v", "0")
        connection = connect(self.url)
        half = self.column.half.get(connection.vendor)
        with connection.cursor() as cursor:
            for statement in [*seed(connection.vendor, rows), *([half] if half else [])]:
                cursor.execute(statement)
        connection.close()

    def write_migration(self, name: str, text: str) -> None:
        (self.new / f"polls/migrations/{name}.py").write_text(text)

    def manage(self, project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "manage.py", *arguments],
            check=False,
            cwd=project,
            env=self.environment(project),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    def must(self, project: Path, *arguments: str) -> str:
        done = self.manage(project, *arguments)
        if done.returncode:
            raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    def environment(self, project: Path) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if name not in OURS}
        paths = [str(project), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        return inherited | {
            "DATABASE_URL": self.url,
            "DJANGO_DEBUG": "false",  # else Django keeps every query in memory
            "DJANGO_SETTINGS_MODULE": "mysite.settings",
            "PYTHONPATH": os.pathsep.join(paths),
        }

    def wrong_rows(self) -> int:
        """Return how many rows have another value than they are to have; one more where NULL is still let in."""
        connection = connect(self.url)
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT COUNT(*) FROM {TABLE} WHERE {self.column.wrong[connection.vendor]}")
            (rows,) = cursor.fetchone()
            columns = connection.introspection.get_table_description(cursor, TABLE)
        connection.close()
        may_be_null = any(each.null_ok for each in columns if each.name == self.column.name)
        return int(rows) + (self.column.required and may_be_null)


def connect(url: str) -> Any:
    """Return a connection for the calling thread, which none of the settings' aliases shares."""
    if str(EXAMPLE) not in sys.path:
        sys.path.append(str(EXAMPLE))
    parse = import_module("mysite.database_urls").parse
    return ConnectionHandler({"default": parse(url)})["default"]


@contextmanager
def database(server: str, name: str) -> Iterator[str]:
    """Make a database on the server with this URL, and yield its own; drop it at the end."""
    connection = connect(server)
    force = " WITH (FORCE)" if connection.vendor == "postgresql" else ""
    quoted = connection.ops.quote_name(name)
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {quoted}")
        try:
            yield urlsplit(server)._replace(path=f"/{name}").geturl()
        finally:
            cursor.execute(f"DROP DATABASE {quoted}{force}")
            connection.close()
