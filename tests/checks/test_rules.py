"""The system checks: what they say of migrations to come, on which databases, and when they say nothing."""

from __future__ import annotations

import importlib
import itertools
import logging
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import pytest
from django.apps import apps
from django.core.checks import Tags, registry
from django.db import connections
from django.db.migrations.executor import MigrationExecutor
from django.test.utils import CaptureQueriesContext

from safemigrate.checks import configuration, leftovers, rules
from tests.conftest import ROOT
from tests.support.projects import EXPIRES, SETTINGS, Project

NUMBER = itertools.count()

MODELS = """\
from django.db import models


class Question(models.Model):
    question_text = models.CharField(max_length=200)

    class Meta:
        app_label = "traps"
"""

CREATE = """\
migrations.CreateModel("Question", [
    ("id", models.BigAutoField(primary_key=True)),
    ("question_text", models.CharField(max_length=200)),
]),
"""

MIGRATION = """\
import uuid
from django.db import migrations, models
from safemigrate.operations import (
    AddNullableField, AddRequiredField, GuardWrites, Populate, RequireField, SetNotNull, UnguardWrites
)


def save_each(apps, schema_editor):
    for question in apps.get_model("traps", "Question").objects.all():
        question.save()


def save_unknown(apps, schema_editor):
    for model in apps.get_models():
        for row in model.objects.all():
            row.save()


def update_all(apps, schema_editor):
    apps.get_model("traps", "Question").objects.update(question_text="?")


class Migration(migrations.Migration):
    {attributes}
    dependencies = {dependencies}
    operations = [
{operations}
    ]
"""

VOTES = 'migrations.AddField("question", "votes", models.IntegerField({})),'
VOTES_FIELD = "models.IntegerField()"
ONE_OFF = 'migrations.AddField("question", "votes", models.IntegerField(default=0), preserve_default=False),'
UNIQUE = 'migrations.AddField("question", "slug", models.UUIDField({}unique=True, default=uuid.uuid4)),'
NULLABLE = VOTES.format("null=True")
REQUIRED = f'migrations.AlterField("question", "votes", {VOTES_FIELD}),'
LOOP = "migrations.RunPython(save_each),"
ADD = f'AddNullableField("question", "votes", {VOTES_FIELD}),'
FILL = 'Populate("question", "votes", 0),'
SET = f'SetNotNull("question", "votes", {VOTES_FIELD}),'
GUARD = 'GuardWrites("question", "votes", 0),'
UNGUARD = 'UnguardWrites("question", "votes"),'
WHOLE = f'AddRequiredField("question", "votes", {VOTES_FIELD}, 0),'
KEPT = f'AddRequiredField("question", "votes", {VOTES_FIELD}, 0, keep_guard=True),'
NOT_ATOMIC = "atomic = False"

TRAPS = {
    "W001": ((ONE_OFF,), ""),
    "W002": ((UNIQUE.format(""),), ""),
    "W003": ((LOOP,), ""),
    "W004": ((WHOLE,), ""),
    "W005": ((ADD, FILL), NOT_ATOMIC),
    "W006": ((NULLABLE, REQUIRED), ""),
    "W007": ((ADD, GUARD, FILL, SET), NOT_ATOMIC),
    "W008": ((KEPT, 'migrations.RemoveField("question", "votes"),'), NOT_ATOMIC),
}
#: Those that the rows of a table bring about; the others are mistakes on any database.
OF_ROWS = ["W001", "W002", "W003", "W006"]


class Traps:
    """An app of its own whose first migration is applied on one database."""

    def __init__(self, folder: Path, alias: str) -> None:
        self.package = f"traps_{next(NUMBER)}"
        self.folder = folder / self.package
        self.connection = connections[alias]
        (self.folder / "migrations").mkdir(parents=True)
        (self.folder / "migrations/__init__.py").touch()
        self.write("__init__.py", "")
        self.write("apps.py", 'from django.apps import AppConfig\n\nclass Traps(AppConfig):\n    name = "')
        self.write("apps.py", f'{self.read("apps.py")}{self.package}"\n    label = "traps"\n')
        self.write("models.py", MODELS)
        self.migration("0001_initial", CREATE)

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text, encoding="utf-8")

    def read(self, name: str) -> str:
        return (self.folder / name).read_text(encoding="utf-8")

    def migration(self, name: str, *operations: str, attributes: str = "", after: str | None = None) -> None:
        names = sorted(path.stem for path in (self.folder / "migrations").glob("0*.py"))
        names = [other for other in names if other < name]
        before = after or (names[-1] if names else None)
        text = MIGRATION.format(
            attributes=attributes,
            dependencies=[("traps", before)] if before else [],
            operations=indent("\n".join(map(dedent, operations)), " " * 8),
        )
        self.write(f"migrations/{name}.py", text)
        importlib.invalidate_caches()

    def apply(self, name: str) -> None:
        MigrationExecutor(self.connection).migrate([("traps", name)])

    def seed(self, table: str = "traps_question", column: str = "question_text") -> None:
        quoted = self.connection.ops.quote_name
        with self.connection.cursor() as cursor:
            cursor.execute(f"INSERT INTO {quoted(table)} ({quoted(column)}) VALUES ('Why?')")

    def warnings(self) -> list[Any]:
        config = [apps.get_app_config("traps")]
        return rules.check_migrations(app_configs=config, databases=[self.connection.alias])

    def found(self) -> list[str]:
        return [warning.id.removeprefix("safemigrate.") for warning in self.warnings()]

    def trap(self, code: str) -> None:
        operations, attributes = TRAPS[code]
        self.migration("0002_trap", *operations, attributes=attributes)


@pytest.fixture(autouse=True)
def crashes(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """No check may have crashed silently, unless a test says so by emptying this list."""
    caplog.set_level(logging.DEBUG, "safemigrate")
    expected: list[str] = []
    yield expected
    messages = [record.getMessage() for record in caplog.get_records("call")]
    assert [message for message in messages if "could not be checked" in message] == expected


@pytest.fixture
def app(tmp_path: Path, alias: str, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Traps]:
    made = Traps(tmp_path, alias)
    monkeypatch.syspath_prepend(tmp_path)
    models = dict(apps.all_models["traps"])
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, f"{made.package}.apps.Traps"]
    made.apply("0001_initial")
    yield made
    apps.all_models["traps"].clear()
    apps.all_models["traps"].update(models)
    for name in [name for name in sys.modules if name.partition(".")[0] == made.package]:
        del sys.modules[name]


@pytest.fixture
def full(app: Traps) -> Traps:
    app.seed()
    return app


sqlite = pytest.mark.parametrize("alias", ["sqlite"], indirect=True)


# Each trap


@pytest.mark.parametrize("code", TRAPS)
def test_a_trap_is_seen(full: Traps, code: str) -> None:
    if code == "W005":
        full.write(
            "models.py", MODELS.replace("    class Meta", f"    votes = {VOTES_FIELD}\n\n    class Meta")
        )
        required(full)
    full.trap(code)
    (warning,) = full.warnings()
    assert warning.id == f"safemigrate.{code}"
    assert warning.obj == "traps.0002_trap"
    assert warning.hint.endswith("/docs/reference/checks.md")


def required(app: Traps) -> None:
    """Let models.py, as it is loaded, say that the field is required."""
    from django.db import models

    models.IntegerField().contribute_to_class(apps.get_model("traps", "Question"), "votes")


@pytest.mark.parametrize("code", OF_ROWS)
def test_nothing_is_said_where_the_table_is_empty(app: Traps, code: str) -> None:
    app.trap(code)
    assert app.found() == []


@pytest.mark.parametrize("code", OF_ROWS)
@sqlite
def test_nothing_is_said_where_the_table_is_only_to_be_made(full: Traps, code: str) -> None:
    operations, attributes = TRAPS[code]
    made = CREATE.replace("Question", "Answer")
    operations = tuple(
        text.replace('"question"', '"answer"').replace("save_each", "save_answers") for text in operations
    )
    full.migration("0002_made", made, attributes=attributes)
    full.migration("0003_trap", *operations, attributes=attributes)
    path = "migrations/0003_trap.py"
    full.write(
        path, full.read(path).replace("def save_each", "def save_answers").replace('"Question"', '"Answer"')
    )
    assert full.found() == []


@pytest.mark.parametrize("code", OF_ROWS)
@sqlite
def test_nothing_is_said_of_what_is_applied(full: Traps, code: str) -> None:
    full.trap(code)
    assert full.found() == [code]
    if code == "W006":  # It gives the NULLs no value.
        full.connection.cursor().execute("DELETE FROM traps_question")
    full.apply("0002_trap")
    assert full.found() == []


RIGHT = {
    "a nullable field": ((NULLABLE,), ""),
    "a field that the database fills": ((VOTES.format("db_default=0"),), ""),
    "one with a default too": ((VOTES.format("default=1, db_default=0"),), ""),
    "ours": ((WHOLE,), NOT_ATOMIC),
    "a nullable field made required by ours": (
        (NULLABLE, f'RequireField("question", "votes", {VOTES_FIELD}, 0),'),
        NOT_ATOMIC,
    ),
    "our three steps": ((ADD, FILL, SET), NOT_ATOMIC),
    "guarded and unguarded": ((ADD, GUARD, FILL, SET, UNGUARD), NOT_ATOMIC),
    "guarded, not required yet": ((ADD, GUARD), NOT_ATOMIC),
    "a guard that is kept on purpose": ((WHOLE.replace(", 0)", ", 0, keep_guard=True)"),), NOT_ATOMIC),
    "filled, and nullable in models.py": ((NULLABLE, FILL), NOT_ATOMIC),
    "a loop that is committed row by row": ((LOOP,), NOT_ATOMIC),
    "one UPDATE": (("migrations.RunPython(update_all),",), ""),
    "made required by ours": ((NULLABLE, FILL, SET), NOT_ATOMIC),
    "many to many": (
        ('migrations.AddField("question", "also", models.ManyToManyField("traps.question")),',),
        "",
    ),
    "stays nullable": (
        (NULLABLE, 'migrations.AlterField("question", "votes", models.BigIntegerField(null=True)),'),
        "",
    ),
}


@pytest.mark.parametrize("case", RIGHT)
def test_nothing_is_said_of_what_is_right(full: Traps, case: str) -> None:
    operations, attributes = RIGHT[case]
    full.migration("0002_right", *operations, attributes=attributes)
    assert full.found() == []


# What it says


@sqlite
def test_w001_says_which_value_all_rows_would_get(full: Traps) -> None:
    full.migration(
        "0002_values",
        ONE_OFF,
        VOTES.format("default=1").replace("votes", "kept"),
        'migrations.AddField("question", "note", models.TextField(blank=True)),',
        'migrations.AddField("question", "made", models.DateTimeField(auto_now_add=True)),',
        'migrations.AddField("question", "key", models.UUIDField(default=uuid.uuid4)),',
        VOTES.format("").replace("votes", "none"),
    )
    said = [re.findall(r"has rows: (.*?)\. Code", warning.msg)[0] for warning in full.warnings()]
    assert said == [
        "they would all get the one-off default 0",
        "they would all get its default 1",
        "they would all get an empty text",
        "they would all get the time of the migration",
        "they would all get its default uuid.uuid4, called once",
        "they have no value for it, so the column is refused, or zeroed",
    ]


@sqlite
def test_w001_in_full(full: Traps) -> None:
    full.trap("W001")
    (warning,) = full.warnings()
    assert warning.msg == (
        "traps.Question.votes is required, and traps_question on default has rows: they would all get the one-off "
        "default 0. Code that does not know the field yet cannot insert rows from then on."
    )
    assert warning.hint == (
        "If it is applied nowhere yet, delete this migration and type: "
        "python manage.py add_required_field traps.Question.votes. Where one value is right for old rows and for "
        "those of old code, give the field a db_default instead.\n\tSee https://github.com/safemigrate/safemigrate/blob/main/docs/reference/checks.md"
    )


@sqlite
def test_w002_of_a_nullable_field_says_how_to_fill_it(full: Traps) -> None:
    full.migration("0002_trap", UNIQUE.format("null=True, "))
    (warning,) = full.warnings()
    assert warning.id == "safemigrate.W002"
    assert 'Populate(model_name="question", name="slug", populate=uuid.uuid4)' in warning.hint


@sqlite
def test_w006_writes_the_line_that_is_right(full: Traps) -> None:
    one_off = REQUIRED.replace("IntegerField()", "IntegerField(default=0)").replace(
        "),", ", preserve_default=False),"
    )
    full.migration("0002_null", NULLABLE)
    full.migration("0003_trap", one_off)
    (warning,) = full.warnings()
    assert warning.msg == (
        "traps.Question.votes becomes required, and traps_question on default has rows: every NULL gets the one-off "
        "default 0, and all are read or copied, under a lock that is waited for, and held, without a limit."
    )
    line = warning.hint.partition("atomic = False: ")[2].partition(" from safemigrate")[0]
    full.migration("0003_trap", f"{line},", attributes=NOT_ATOMIC)
    del sys.modules[f"{full.package}.migrations.0003_trap"]
    assert full.found() == []
    full.apply("0003_trap")


@sqlite
def test_w006_says_what_else_would_change(full: Traps) -> None:
    full.migration("0002_trap", NULLABLE, REQUIRED.replace("Integer", "BigInteger"))
    (warning,) = full.warnings()
    assert warning.hint.startswith("Alter the rest (type) by itself, then write this instead")


@sqlite
def test_w004_is_said_once_for_a_migration(full: Traps) -> None:
    full.migration("0002_trap", ADD, FILL, SET)
    assert full.found() == ["W004"]


# Where transactions are


def test_a_run_python_with_a_transaction_of_its_own(full: Traps) -> None:
    full.migration("0002_trap", LOOP.replace("),", ", atomic=True),"), attributes=NOT_ATOMIC)
    assert full.found() == ["W003"]


def test_a_run_python_that_wants_none_has_none_only_where_the_migration_has_none(full: Traps) -> None:
    full.migration("0002_trap", LOOP.replace("),", ", atomic=False),"))
    assert full.found() == (["W003"] if full.connection.features.can_rollback_ddl else [])


@sqlite
def test_a_loop_over_models_that_cannot_be_seen(full: Traps) -> None:
    full.migration("0002_trap", "migrations.RunPython(save_unknown),")
    assert full.found() == ["W003"]


# Through the history


def test_a_table_that_is_renamed_on_the_way(full: Traps) -> None:
    full.migration(
        "0002_renamed",
        'migrations.RenameModel("Question", "Survey"),',
        'migrations.AlterModelTable("survey", "surveys"),',
        'migrations.RenameModel("Survey", "Form"),',
    )
    full.migration("0003_trap", ONE_OFF.replace("question", "form"))
    (warning,) = full.warnings()
    assert warning.obj == "traps.0003_trap"
    assert "add_required_field traps.Form.votes" in warning.hint


@sqlite
def test_a_model_made_under_the_name_of_one_that_was_renamed(full: Traps) -> None:
    full.migration("0002_renamed", 'migrations.RenameModel("Question", "Survey"),', CREATE)
    full.migration("0003_trap", ONE_OFF)
    assert full.found() == []


@sqlite
def test_within_separate_database_and_state(full: Traps) -> None:
    full.migration(
        "0002_trap",
        f"migrations.SeparateDatabaseAndState(database_operations=[{ONE_OFF} {LOOP}], state_operations=[{ONE_OFF}]),",
    )
    assert full.found() == ["W001", "W003"]


@sqlite
def test_what_only_the_state_gets_does_nothing(full: Traps) -> None:
    full.migration("0002_state", f"migrations.SeparateDatabaseAndState(state_operations=[{ONE_OFF}]),")
    assert full.found() == []


@sqlite
def test_a_populate_followed_in_a_later_migration_under_another_name(full: Traps) -> None:
    full.migration("0002_fill", ADD, FILL, attributes=NOT_ATOMIC)
    full.migration(
        "0003_renamed",
        'migrations.RenameModel("Question", "Survey"),',
        'migrations.RenameField("survey", "votes", "points"),',
    )
    full.migration(
        "0004_set", 'SetNotNull("survey", "points", models.IntegerField()),', attributes=NOT_ATOMIC
    )
    assert full.found() == []


@sqlite
def test_a_guard_taken_down_in_a_later_migration_under_another_name(full: Traps) -> None:
    full.migration("0002_guard", ADD, GUARD, FILL, SET, attributes=NOT_ATOMIC)
    full.migration("0003_renamed", 'migrations.RenameField("question", "votes", "points"),')
    # The guard names the column as it was: it is neither at work any more, nor found under the new name.
    assert full.found() == ["W008", "W007"]
    full.migration("0004_down", 'UnguardWrites("question", "points"),', attributes=NOT_ATOMIC)
    assert full.found() == ["W008"]


@sqlite
def test_only_the_squashed_migration_speaks_or_only_those_it_replaces(full: Traps) -> None:
    full.migration("0002_a", ONE_OFF)
    full.migration("0003_b", LOOP)
    replaces = 'replaces = [("traps", "0002_a"), ("traps", "0003_b")]'
    full.migration("0002_squashed", ONE_OFF, LOOP, attributes=replaces, after="0001_initial")
    assert [(w.id[-4:], w.obj) for w in full.warnings()] == [
        ("W001", "traps.0002_squashed"),
        ("W003", "traps.0002_squashed"),
    ]
    MigrationExecutor(full.connection).recorder.record_applied("traps", "0002_a")
    assert [(w.id[-4:], w.obj) for w in full.warnings()] == [("W003", "traps.0003_b")]
    MigrationExecutor(full.connection).recorder.record_applied("traps", "0003_b")
    assert full.found() == []


@sqlite
def test_in_the_order_in_which_they_are_run(full: Traps) -> None:
    full.migration("0002_late", NULLABLE, after="0001_initial")
    full.migration(
        "0003_early",
        ONE_OFF.replace("votes", "other"),
        attributes='run_before = [("traps", "0002_late")]',
        after="0001_initial",
    )
    assert [warning.obj for warning in full.warnings()] == ["traps.0003_early"]


@sqlite
def test_a_table_that_the_history_has_and_the_database_has_not(full: Traps) -> None:
    full.connection.cursor().execute("DROP TABLE traps_question")
    full.trap("W001")
    assert full.found() == []


# Whom it asks


class Nowhere:
    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool:
        return False


@pytest.mark.parametrize("code", sorted(TRAPS))
@sqlite
def test_nothing_is_said_where_the_routers_keep_the_model_away(full: Traps, code: str, settings: Any) -> None:
    full.trap(code)
    if code == "W005":
        required(full)
    assert full.found() == [code]
    settings.DATABASE_ROUTERS = [f"{__name__}.Nowhere"]
    assert full.found() == []


def test_one_query_for_a_table_and_none_where_all_is_applied(full: Traps) -> None:
    full.warnings()
    with CaptureQueriesContext(full.connection) as loading:
        full.warnings()
    full.migration("0002_trap", ONE_OFF, UNIQUE.format(""), LOOP)
    full.found()
    with CaptureQueriesContext(full.connection) as looking:
        assert full.found() == ["W001", "W002", "W003"]
    read = [query["sql"] for query in looking if "traps_question" in query["sql"]]
    assert len(read) == 1
    assert "LIMIT 1" in read[0]
    assert not [query for query in loading if "traps_question" in query["sql"]]
    selects = [query for query in loading if "django_migrations" in query["sql"]]
    assert len(selects) == 1


@sqlite
def test_other_apps_are_not_looked_at_when_one_is_named(full: Traps) -> None:
    full.trap("W001")
    assert rules.check_migrations(app_configs=[apps.get_app_config("auth")], databases=["default"]) == []


def test_without_databases_nothing_is_asked() -> None:
    assert rules.check_migrations() == []
    checks = registry.registry.get_checks(include_deployment_checks=True)
    of_databases = [check.__qualname__ for check in checks if Tags.database in check.tags]
    assert f"{rules.__name__}.check_migrations" in of_databases


@sqlite
def test_a_history_that_cannot_be_read_is_left_to_migrate(full: Traps, crashes: list[str]) -> None:
    full.migration("0002_trap", ONE_OFF)
    full.migration("0003_broken", 'migrations.AddField("nowhere", "votes", models.IntegerField()),')
    assert full.found() == []
    crashes.append("The migrations of default could not be checked")


# As it is typed


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """The field is in models.py, and in a migration as makemigrations writes it with a one-off default."""
    made = Project(tmp_path / "project").made()
    made.seed("default", 3)
    made.add_field(EXPIRES)
    made.write("polls/migrations/0002_question_expires_date.py", NAIVE)
    return made


NAIVE = """\
import django.utils.timezone
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("polls", "0001_initial")]
    operations = [
        migrations.AddField(
            model_name="question",
            name="expires_date",
            field=models.DateTimeField(verbose_name="expires at", default=django.utils.timezone.now),
            preserve_default=False,
        ),
    ]
"""
OBJ = (
    "polls.0002_question_expires_date: (safemigrate.W001) polls.Question.expires_date is required, "
    "and polls_question on"
)


@pytest.mark.slow
def test_check_and_migrate_say_it_and_go_on(project: Project) -> None:
    done = project.run("check", "--database", "default")
    assert done.returncode == 0
    assert f"{OBJ} default has rows" in done.stderr
    assert "python manage.py add_required_field polls.Question.expires_date" in done.stderr
    assert project.run("check", "--database", "default", "--fail-level", "WARNING").returncode == 1
    done = project.run("migrate")
    assert done.returncode == 0
    assert f"{OBJ} default has rows" in done.stderr
    assert "no issues" in project.must("check", "--database", "default")


@pytest.mark.slow
def test_each_database_is_asked_for_itself(project: Project) -> None:
    assert "no issues" in project.must("check", "--database", "archive")
    project.seed("archive", 1)
    project.must("migrate", "--database", "default")
    done = project.run("check", "--database", "archive", "--database", "default")
    assert f"{OBJ} archive has rows" in done.stderr
    assert "default has rows" not in done.stderr


def test_what_is_typed_as_the_hint_says_is_right(project: Project) -> None:
    project.path("polls/migrations/0002_question_expires_date.py").unlink()
    project.must("add_required_field", "polls.Question.expires_date", "--populate", 'F("pub_date")')
    assert "no issues (0 silenced)" in project.must("check", "--database", "default")


def test_without_a_database_nothing_is_said(project: Project) -> None:
    assert "no issues" in project.must("check")


def test_one_is_silenced_or_all(project: Project) -> None:
    project.write("settings.py", SETTINGS + '\nSILENCED_SYSTEM_CHECKS = ["safemigrate.W001"]\n')
    assert "(1 silenced)" in project.must("check", "--database", "default")
    project.write("settings.py", SETTINGS + "\nSAFEMIGRATE_CHECKS = False\n")
    assert "no issues (0 silenced)" in project.must("check", "--database", "default")


@pytest.mark.slow
def test_three_phases_as_the_command_writes_them(project: Project) -> None:
    project.path("polls/migrations/0002_question_expires_date.py").unlink()
    project.must(
        "add_required_field", "polls.Question.expires_date", "--populate", 'F("pub_date")', "--phases", "3"
    )
    for number in ("0002", "0003", "0004"):
        assert "no issues (0 silenced)" in project.must("check", "--database", "default")
        project.must("migrate", "polls", number)


def test_a_package_that_is_installed_is_not_the_projects(project: Project) -> None:
    installed = project.path("venv/lib/site-packages")
    installed.mkdir(parents=True)
    shutil.move(project.path("polls"), installed / "polls")
    environment = {"PYTHONPATH": f"{ROOT}:{installed}"}
    assert "no issues" in project.must("check", "--database", "default", **environment)
    shutil.move(installed / "polls/migrations", project.path("ours"))
    project.write("settings.py", SETTINGS + '\nMIGRATION_MODULES = {"polls": "ours"}\n')
    assert OBJ in project.run("check", "--database", "default", **environment).stderr


def test_what_cannot_be_checked_is_left_to_migrate(project: Project) -> None:
    project.write("settings.py", SETTINGS.replace('f"{alias}.sqlite3"', '"missing/folder.sqlite3"'))
    done = project.run("check", "--database", "default")
    assert "safemigrate" not in done.stderr.replace("INSTALLED", "")
    project.write("settings.py", SETTINGS)
    project.write("polls/migrations/0003_broken.py", "import nothing_of_this_name\n")
    assert "no issues" in project.must("check", "--database", "default")


# Documented


def test_every_check_is_documented_and_no_other() -> None:
    source = Path(rules.__file__).read_text(encoding="utf-8")
    codes = sorted(f"W{int(number):03}" for number in re.findall(r"_caution\(\s*(\d+),", source))
    page = (ROOT / "docs/reference/checks.md").read_text(encoding="utf-8")
    assert codes == sorted(TRAPS)
    modules = [Path(module.__file__).read_text(encoding="utf-8") for module in (configuration, leftovers)]
    others = re.findall(r'id="safemigrate\.([EW]\d+)', "".join(modules))
    assert sorted(re.findall(r"^\| `([EW]\d+)` \|", page, re.MULTILINE)) == sorted({*codes, *others})
