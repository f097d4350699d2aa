"""Throw-away Django projects, driven by `python manage.py` as a person would."""

from __future__ import annotations

import atexit
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from textwrap import dedent
from typing import Any

from tests.conftest import ROOT
from tests.support import forks

MANAGE = """\
import os
import sys

from django.core.management import execute_from_command_line

os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
execute_from_command_line(sys.argv)
"""

SETTINGS = """\
from pathlib import Path

FOLDER = Path(__file__).parent
SECRET_KEY = "only-for-tests"
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "polls", "safemigrate"]
DATABASES = {
    alias: {"ENGINE": "django.db.backends.sqlite3", "NAME": FOLDER / f"{alias}.sqlite3"}
    for alias in ("default", "archive")
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
"""

MODELS = """\
from django.db import models


class Question(models.Model):
    question_text = models.CharField(max_length=200)
    pub_date = models.DateTimeField("date published")
"""

#: What a test adds to it: a line in the last model of the app.
EXPIRES = 'expires_date = models.DateTimeField("expires at")'


class Project:
    """A project with the app polls, in a folder of its own; its tables exist in two SQLite files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.write("manage.py", MANAGE)
        self.write("settings.py", SETTINGS)
        self.write("polls/__init__.py", "")
        self.write("polls/models.py", MODELS)
        self.write("polls/migrations/__init__.py", "")

    def path(self, name: str) -> Path:
        return self.folder / name

    def write(self, name: str, text: str) -> None:
        self.path(name).parent.mkdir(parents=True, exist_ok=True)
        self.path(name).write_text(dedent(text), encoding="utf-8")

    def read(self, name: str) -> str:
        return self.path(name).read_text(encoding="utf-8")

    def append(self, name: str, text: str) -> None:
        with self.path(name).open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    def add_field(self, line: str = EXPIRES, app: str = "polls") -> None:
        self.append(f"{app}/models.py", f"    {line}")

    def migrations(self, app: str = "polls") -> list[str]:
        """Return the names of all files in the app's migrations but __init__.py, leftovers too."""
        names = {path.name for path in self.path(f"{app}/migrations").iterdir()}
        return sorted(names - {"__init__.py", "__pycache__"})

    def run(
        self, *arguments: str, prefix: tuple[str, ...] = (), **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run manage.py, in a fork where there is no prefix and nothing that Python reads as it starts."""
        if not prefix and not any(name.startswith("PYTHON") for name in environment):
            return forks.run(["manage.py", *arguments], self.folder, self.environment(**environment), 120)
        return subprocess.run(
            [*prefix, sys.executable, "manage.py", *arguments],
            cwd=self.folder,
            env=self.environment(**environment),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=120,
        )

    def environment(self, **more: str) -> dict[str, str]:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("DJANGO_")}
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        quiet = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1", "NO_COLOR": "1"}
        return inherited | quiet | more

    def must(self, *arguments: str, **environment: str) -> str:
        done = self.run(*arguments, **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def made(self) -> Project:
        """Write the first migration and make the tables."""
        shutil.copytree(_made(), self.folder, dirs_exist_ok=True)
        return self

    def sql(self, alias: str, statement: str, *arguments: Any) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(self.path(f"{alias}.sqlite3"))
        try:
            with connection:
                return connection.execute(statement, arguments).fetchall()
        finally:
            connection.close()

    def seed(self, alias: str, rows: int) -> None:
        for number in range(1, rows + 1):
            statement = "INSERT INTO polls_question (question_text, pub_date) VALUES (?, ?)"
            self.sql(alias, statement, f"Question {number}", f"2026-01-{number % 28 + 1:02} 12:00:00")


@cache
def _made() -> Path:
    """Make the project once, to be copied; return its folder."""
    folder = Path(tempfile.mkdtemp(prefix="safemigrate-project-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    project = Project(folder)
    project.must("makemigrations", "-v0")
    for alias in ("default", "archive"):
        project.must("migrate", "-v0", "--database", alias)
    return folder
