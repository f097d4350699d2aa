"""Add a required field to full tables, for real and in front of you: `make demo`.

Takes a copy of the example project as it was before `Question.expires_date`, fills its databases,
adds the field, migrates every database, and reads every row back.
"""

from __future__ import annotations

import argparse
import difflib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import django
from django.conf import settings
from django.db import connections

from tools.servers import MissingServer, PostgreSQL, ServerError

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "example_polls"
WORD = "expire"  # what the field brought into the project is in lines that say so
CHANGED = ("polls/models.py", "polls/admin.py", "polls/reports.py", "polls/views.py", "polls/tests.py")
FIELD = "polls.Question.expires_date"
BACKFILL = "polls.RecountVotes"
POPULATE = "F('pub_date') + timedelta(days=30)"
OPEN_FOR = timedelta(days=30)
SHOWN_ROWS = 3
ANSWERS = {"default": 3}  # the site opens on this alias; elsewhere the answers would only take time
OURS = ("DATABASE_URL", "ARCHIVE_DATABASE_URL", "POSTGRESQL_URL", "DJANGO_SETTINGS_MODULE")

say = partial(print, flush=True)  # in step with what the commands print themselves


def main() -> int:
    options = parse_arguments()
    started = time.monotonic()
    for name in OURS:
        os.environ.pop(name, None)
    with postgresql() as server:
        try:
            passed = Demo(options.folder, options.rows).run()
        except subprocess.CalledProcessError as error:
            say(f"\n{mark(False)} {typed(error.cmd[1:])} ended with code {error.returncode}.")
            return 1
        verdict = "Every check passed" if passed else "A CHECK FAILED"
        say(f"\n{mark(passed)} {verdict}, in {time.monotonic() - started:.0f} s.")
        if passed:
            say_how_to_open(options.folder)
        if options.keep and server:
            wait_for_enter(server)
    return 0 if passed else 1


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000, help="polls per database (default: 100,000)")
    parser.add_argument("--keep", action="store_true", help="leave PostgreSQL up until you press Enter")
    parser.add_argument("--folder", type=Path, default=ROOT / "demo", help="made anew (default: demo)")
    options = parser.parse_args()
    options.folder = options.folder.resolve()
    if options.rows < 1:
        parser.error("--rows must be 1 or more")
    if options.folder.exists() and not (options.folder / "manage.py").exists():
        parser.error(f"{options.folder} is no earlier demo: it is left alone, name another --folder")
    return options


@contextmanager
def postgresql() -> Iterator[PostgreSQL | None]:
    """A PostgreSQL for the third alias, or none, and then the reason is said."""
    try:
        if not (find_spec("psycopg") or find_spec("psycopg2")):
            raise MissingServer("no driver: pip install psycopg2-binary")
        server = PostgreSQL()
        server.start()
    except (MissingServer, ServerError) as reason:
        say(f"PostgreSQL is left out: {reason}")
        yield None
        return
    os.environ["POSTGRESQL_URL"] = server.url
    try:
        yield server
    finally:
        server.stop()


class Demo:
    def __init__(self, folder: Path, rows: int) -> None:
        self.folder, self.rows = folder, rows
        self.aliases = ["default", "archive"] + ["postgresql"] * ("POSTGRESQL_URL" in os.environ)

    def run(self) -> bool:
        """Do all of it; return whether every check passed."""
        heading("A project with full tables")
        copy_project_before(self.folder)
        self.fill()
        before = self.show_tables()
        heading("The model gets a required field")
        self.change_model()
        heading("One command writes the migration")
        self.write_migration()
        heading("Every database gets it")
        self.migrate()
        heading("The same tables now")
        passed = self.check(before, self.show_tables())
        heading("Once more, there is nothing to do")
        passed &= self.check_nothing_left()
        self.finish_project()
        heading("The same engine, for work that is no migration")
        for alias in self.aliases:
            self.manage("backfill", "run", BACKFILL, "--database", alias)
        return passed & self.check_counts()

    def fill(self) -> None:
        """Fill the databases side by side, and say it in order."""
        with ThreadPoolExecutor() as pool:
            for seeding, output in pool.map(self.fill_one, self.aliases):
                say(bold(f"$ python manage.py {typed(seeding)}"))
                say(output, end="")

    def fill_one(self, alias: str) -> tuple[tuple[str, ...], str]:
        self.manage("migrate", "--database", alias, "-v", "0", quiet=True)
        choices, seed = str(ANSWERS.get(alias, 0)), str(self.aliases.index(alias) + 1)
        seeding = (
            "seed_polls", str(self.rows), "--database", alias, "--choices", choices, "--seed", seed,
        )  # fmt: skip
        return seeding, self.manage(*seeding, quiet=True)

    def show_tables(self) -> dict[str, Table]:
        tables = {alias: read_table(self.folder, alias) for alias in self.aliases}
        for table in tables.values():
            table.show()
        return tables

    def change_model(self) -> None:
        path = self.folder / "polls/models.py"
        before, after = path.read_text(), (EXAMPLE / "polls/models.py").read_text()
        path.write_text(after)
        show_diff("polls/models.py", before, after)

    def write_migration(self) -> None:
        migrations = self.folder / "polls/migrations"
        known = set(migrations.glob("*.py"))
        self.manage("add_required_field", FIELD, "--populate", POPULATE)
        for path in sorted(set(migrations.glob("*.py")) - known):
            say(f"\n{bold(str(path.relative_to(self.folder)))}")
            say(indented(path.read_text().rstrip()))

    def migrate(self) -> None:
        for alias in self.aliases:
            self.manage("migrate", "--database", alias)
            say()

    def check(self, before: dict[str, Table], after: dict[str, Table]) -> bool:
        passed = True
        say()
        for alias, table in after.items():
            facts = list(table.facts(before[alias]))
            say(f"  {alias:10}", *(f"  {mark(holds)} {fact}" for fact, holds in facts))
            passed &= all(holds for _, holds in facts)
        return passed

    def check_nothing_left(self) -> bool:
        passed = True
        for alias in self.aliases:
            output = self.manage("migrate", "--database", alias, quiet=True)
            passed &= (holds := "No migrations to apply" in output)
            say(f"  {alias:10}   {mark(holds)} {output.strip().splitlines()[-1].strip()}")
        output = self.manage("makemigrations", "--check", quiet=True)
        say(f"  {'models':10}   {mark(True)} {output.strip()}")
        return passed

    def check_counts(self) -> bool:
        passed = True
        say()
        for alias in self.aliases:
            wrong = len(read_table(self.folder, alias, WRONG).rows)
            passed &= not wrong
            say(
                f"  {alias:10}   {mark(not wrong)} {wrong:,} polls whose votes are not those of their choices"
            )
        return passed

    def finish_project(self) -> None:
        """Give the copy the rest of what uses the field, and a user who may log in."""
        for name in CHANGED:
            shutil.copy(EXAMPLE / name, self.folder / name)
        self.manage(
            "createsuperuser", "--no-input", "--username", "admin", "--email", "admin@example.com",
            "-v", "0", quiet=True, DJANGO_SUPERUSER_PASSWORD="admin",
        )  # fmt: skip

    def manage(self, *arguments: str, quiet: bool = False, **environment: str) -> str:
        """Run a command of the project as a person would type it; a quiet one returns what it said."""
        if not quiet:
            say(bold(f"$ python manage.py {typed(arguments)}"))
        paths = [*filter(None, [os.environ.get("PYTHONPATH")]), str(ROOT)]
        completed = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            check=False,  # below, after what it said is shown
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | environment,
            stdout=subprocess.PIPE if quiet else None,
            text=True,
        )
        if completed.returncode:
            say(completed.stdout or "", end="")
            completed.check_returncode()
        return completed.stdout or ""


def copy_project_before(folder: Path) -> None:
    """Make the folder anew: the example without the field and what came with it."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("*.sqlite3*", "__pycache__", ".*"))
    (folder / ".gitignore").write_text("*\n")
    for migration in (folder / "polls/migrations").glob(f"*{WORD}*.py"):
        migration.unlink()
    for name in CHANGED:
        path = folder / name
        path.write_text(without_lines(path.read_text(), WORD))


def without_lines(source: str, word: str) -> str:
    """Leave out each line that holds the word, with the block indented under it."""
    kept: list[str] = []
    removed_at: int | None = None
    for line in source.splitlines(keepends=True):
        indent = len(line) - len(line.lstrip())
        inside = removed_at is not None and indent > removed_at
        if not line.strip():
            kept.append(line)
        elif inside or word in line:
            removed_at = removed_at if inside else indent
            drop_blank_lines_from_end(kept)
        else:
            removed_at = None
            kept.append(line)
    return "".join(kept)


def drop_blank_lines_from_end(lines: list[str]) -> None:
    while lines and not lines[-1].strip():
        lines.pop()


@dataclass
class Table:
    """polls_question as one database has it, all of it."""

    alias: str
    database: str
    columns: dict[str, str]  # what each is declared as
    rows: list[tuple[Any, ...]]

    def show(self) -> None:
        say(f"\n{bold(f'polls_question on {self.alias}')} ({self.database}), {len(self.rows):,} rows")
        lines = [tuple(self.columns), tuple(self.columns.values())]
        lines += [tuple(map(shown, row)) for row in self.rows[:SHOWN_ROWS]]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            say("  " + "  ".join(cells).rstrip())

    def facts(self, before: Table) -> Iterator[tuple[str, bool]]:
        """What must be true once the field is there, each with whether it is."""
        expires = [row[3] for row in self.rows]
        nulls = expires.count(None)
        right = sum(row[3] == row[2] + OPEN_FOR for row in self.rows)
        yield f"the same {len(self.rows):,} rows", [row[:3] for row in self.rows] == before.rows
        yield f"{nulls} NULL", nulls == 0
        yield "NOT NULL", self.columns["expires_date"].endswith("NOT NULL")
        yield f"pub_date + 30 days in {right:,} rows", right == len(self.rows)


#: The columns that are for backfills, and are not shown.
BESIDE = {"vote_count", "url_name"}
WRONG = """
    WHERE vote_count <> (SELECT COALESCE(SUM(votes), 0) FROM polls_choice WHERE question_id = polls_question.id)
"""
COLUMNS = {
    "sqlite": """SELECT name, type, "notnull" FROM pragma_table_info('polls_question')""",
    "postgresql": """
        SELECT attname, replace(format_type(atttypid, atttypmod), 'timestamp with time zone', 'timestamptz'),
               attnotnull
        FROM pg_attribute
        WHERE attrelid = 'polls_question'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum
    """,
}


def read_table(folder: Path, alias: str, where: str = "") -> Table:
    """Read a whole table by plain SQL: neither the models nor the package have a part in it."""
    connection = connect(folder, alias)
    with connection.cursor() as cursor:
        cursor.execute(COLUMNS[connection.vendor])
        columns = {
            name: f"{kind}{' NOT NULL' * bool(required)}"
            for name, kind, required in cursor.fetchall()
            if name not in BESIDE
        }
        cursor.execute(f"SELECT {', '.join(columns)} FROM polls_question {where} ORDER BY id")
        rows = cursor.fetchall()
    version = ".".join(map(str, connection.get_database_version()))
    connection.close()
    return Table(alias, f"{connection.display_name} {version}", columns, rows)


def connect(folder: Path, alias: str) -> Any:
    """Connect as the copy's settings say, with none of its apps loaded."""
    if not settings.configured:
        sys.path.insert(0, str(folder))
        copy = import_module("mysite.settings")
        settings.configure(DATABASES=copy.DATABASES, USE_TZ=copy.USE_TZ, TIME_ZONE=copy.TIME_ZONE)
        django.setup()
    return connections[alias]


def shown(value: Any) -> str:
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    text = str(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def show_diff(name: str, before: str, after: str) -> None:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), name, name, lineterm="", n=1)
    for line in lines:
        colour = {"+": "32", "-": "31", "@": "36"}.get(line[0])
        say(f"  {styled(line, colour) if colour else line}".rstrip())


def say_how_to_open(folder: Path) -> None:
    place = os.path.relpath(folder)
    python = os.path.relpath(sys.executable, folder)
    say(f"\nOpen the site:\n  cd {place} && {python} manage.py runserver")
    say("  http://127.0.0.1:8000/         the polls: those past their date take no votes")
    say("  http://127.0.0.1:8000/admin/   user admin, password admin")


def wait_for_enter(server: PostgreSQL) -> None:
    say(f"\nPostgreSQL stays up at {server.url} until you press Enter.")
    sys.stdin.readline()


def heading(text: str) -> None:
    say(f"\n{bold(text)}\n{bold('─' * len(text))}")


def typed(arguments: Sequence[str]) -> str:
    """The arguments as a person would type them."""
    return " ".join(f'"{argument}"' if " " in argument else argument for argument in arguments)


def indented(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.splitlines())


def mark(holds: bool) -> str:
    return styled("✓", "32") if holds else styled("✗", "31")


def bold(text: str) -> str:
    return styled(text, "1")


def styled(text: str, code: str) -> str:
    plain = "NO_COLOR" in os.environ or not sys.stdout.isatty()
    return text if plain else f"\033[{code}m{text}\033[0m"


if __name__ == "__main__":
    if hasattr(sys.stdout, "reconfigure"):  # a terminal that knows no ✓ gets a ? for it
        sys.stdout.reconfigure(errors="replace")
    sys.exit(main())
