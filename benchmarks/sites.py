"""The example as a site in the middle of a deploy: a full table, the code of before the field, and the new code."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.db.utils import ConnectionHandler

from benchmarks.seeds import TABLE, seed
from tools.demo import CHANGED, EXAMPLE, OURS, ROOT, copy_project_before

BEFORE = "0002_alter_question_pub_date"
NULLABLE = "0003_question_nullable_expires_date"
FIELD = 'expires_date = models.DateTimeField("expires at", null=True)'
ADD_NULLABLE = f"""\
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("polls", "{BEFORE}")]
    operations = [
        migrations.AddField("question", "expires_date", models.DateTimeField("expires at", null=True)),
    ]
"""
HALF = {
    "postgresql": f"UPDATE {TABLE} SET expires_date = pub_date + interval '30 days' WHERE id % 2 = 0",
    "mysql": f"UPDATE {TABLE} SET expires_date = pub_date + INTERVAL 30 DAY WHERE id % 2 = 0",
}

WRONG = {
    "postgresql": "expires_date IS DISTINCT FROM pub_date + interval '30 days'",
    "mysql": "NOT expires_date <=> pub_date + INTERVAL 30 DAY",
    "sqlite": "expires_date IS NOT datetime(pub_date, '+30 days')",
}


class Site:
    """Two copies of the example in a folder, both on one database."""

    def __init__(self, folder: Path, url: str) -> None:
        self.url = url
        self.old, self.new = folder / "old", folder / "new"
        copy_project_before(self.old)
        copy_project_before(self.new)
        for name in CHANGED:
            shutil.copy(EXAMPLE / name, self.new / name)

    def fill(self, rows: int, *, known: bool = False) -> None:
        """Make the table as it is before the field, or with the field `known` as nullable, with this many rows."""
        if known:
            models = self.old / "polls/models.py"
            line = 'pub_date = models.DateTimeField("date published")\n'
            before, after = models.read_text().split(line)
            models.write_text(f"{before}{line}    {FIELD}\n{after}")
            for project in (self.old, self.new):
                (project / f"polls/migrations/{NULLABLE}.py").write_text(ADD_NULLABLE)
        self.must(self.old, "migrate", "-v", "0")
        connection = connect(self.url)
        with connection.cursor() as cursor:
            for statement in [*seed(connection.vendor, rows), *([HALF[connection.vendor]] if known else [])]:
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
        """Return how many rows have not the value that the field's populate gives them."""
        connection = connect(self.url)
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT COUNT(*) FROM {TABLE} WHERE {WRONG[connection.vendor]}")
            (rows,) = cursor.fetchone()
        connection.close()
        return int(rows)


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
