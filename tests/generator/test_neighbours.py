"""Other packages that order or judge migrations, really installed, run over what the command writes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from django.db import connections

from tests.support.projects import MODELS, Project
from tests.support.psycopg3 import (
    Psycopg3Project,
    install,  # noqa: F401
    make_project,  # noqa: F401
)

pytestmark = pytest.mark.slow

asks_for_python_3_12 = pytest.mark.skipif(
    sys.version_info < (3, 12), reason="the package asks for Python 3.12"
)

COMMAND = "add_required_field"
LABEL = "polls.Question.expires_date"
NOW = ("--populate", "Now()")
THREE = ("--phases", "3")
ADD, FILL, REQUIRE = (
    f"000{number}_question_expires_date_{ending}"
    for number, ending in [(2, "add"), (3, "fill"), (4, "require")]
)
ALL = ("django_safemigrate", "syzygy", "django_linear_migrations", "django_migration_linter")

DRIVER = """\
import pymysql
pymysql.install_as_MySQLdb()
"""


def beside(folder: Path, *apps: str, database: dict[str, object] | None = None) -> Project:
    """Make a project that has these apps, tables with rows, and a field that is in no migration."""
    project = Project(folder)
    project.append("settings.py", f"INSTALLED_APPS += {list(apps)!r}")
    if database:
        project.append("settings.py", DRIVER + f'DATABASES["default"] = {database!r}')
    project.must("makemigrations", "-v0")
    if "django_linear_migrations" in apps:
        project.append("settings.py", 'FIRST_PARTY_APPS = ["polls"]')
        project.must("create_max_migration_files")
    project.must("migrate", "-v0")
    project.add_field()
    return project


def text(project: Project, name: str) -> str:
    return project.read(f"polls/migrations/{name}.py")


def applied(project: Project) -> list[str]:
    rows = project.sql("default", "SELECT name FROM django_migrations WHERE app = 'polls' ORDER BY name")
    return [name for (name,) in rows]


def marks(project: Project, name: str) -> list[str]:
    """Return the lines of the class between `atomic = False` and its dependencies."""
    body = text(project, name).partition("    atomic = False\n")[2]
    return [line.strip() for line in body.partition("\n    dependencies")[0].splitlines() if line]


# django-safemigrate


def test_safemigrate_runs_the_first_two_files_before_the_deployment(tmp_path: Path) -> None:
    project = beside(tmp_path, "django_safemigrate")
    project.seed("default", 3)
    project.must(COMMAND, LABEL, *NOW, *THREE)

    assert [marks(project, name) for name in (ADD, FILL, REQUIRE)] == [
        ["safe = Safe.before_deploy()"],
        ["safe = Safe.always()"],
        ["safe = Safe.after_deploy()"],
    ]
    shown = project.must("safemigrate")
    assert f"Delayed migrations:\n  polls.{REQUIRE}\n" in shown
    assert applied(project) == ["0001_initial", ADD, FILL]
    project.must("safemigrate")
    assert applied(project) == ["0001_initial", ADD, FILL]
    project.must("migrate")
    assert applied(project) == ["0001_initial", ADD, FILL, REQUIRE]


def test_safemigrate_runs_one_file_before_the_deployment(tmp_path: Path) -> None:
    project = beside(tmp_path, "django_safemigrate")
    project.must(COMMAND, LABEL, *NOW)

    project.must("safemigrate")

    assert applied(project) == ["0001_initial", "0002_question_expires_date"]


def test_the_hook_of_safemigrate_finds_its_attribute(tmp_path: Path) -> None:
    project = beside(tmp_path, "django_safemigrate")
    project.must(COMMAND, LABEL, *NOW, *THREE)

    files = [f"polls/migrations/{name}.py" for name in (ADD, FILL, REQUIRE)]
    hook = subprocess.run(
        [sys.executable, "-m", "django_safemigrate.check", *files],
        cwd=project.folder,
        env=project.environment(),
        capture_output=True,
        text=True,
    )
    assert (hook.returncode, hook.stdout) == (0, "")


# django-syzygy


def test_syzygy_runs_the_first_two_files_before_the_deployment(tmp_path: Path) -> None:
    project = beside(tmp_path, "syzygy")
    project.seed("default", 3)
    project.must(COMMAND, LABEL, *NOW, *THREE)

    assert [marks(project, name) for name in (ADD, FILL, REQUIRE)] == [
        ["stage = Stage.PRE_DEPLOY"],
        ["stage = Stage.PRE_DEPLOY"],
        ["stage = Stage.POST_DEPLOY"],
    ]
    project.must("check")
    project.must("migrate", "--pre-deploy")
    assert applied(project) == ["0001_initial", ADD, FILL]
    project.must("migrate")
    assert applied(project) == ["0001_initial", ADD, FILL, REQUIRE]
    assert "No changes detected" in project.must("makemigrations", "--check")


def test_syzygy_runs_one_file_before_the_deployment(tmp_path: Path) -> None:
    project = beside(tmp_path, "syzygy")
    project.must(COMMAND, LABEL, *NOW)

    project.must("migrate", "--pre-deploy")

    assert applied(project) == ["0001_initial", "0002_question_expires_date"]


# django-linear-migrations


@pytest.mark.parametrize("shape", [(), THREE])
def test_linear_migrations_finds_its_file_right(tmp_path: Path, shape: tuple[str, ...]) -> None:
    project = beside(tmp_path, "django_linear_migrations")
    project.must(COMMAND, LABEL, *NOW, *shape)

    assert (
        project.read("polls/migrations/max_migration.txt")
        == f"{project.migrations()[-2].removesuffix('.py')}\n"
    )
    assert "no issues" in project.must("check", "--fail-level", "WARNING")
    project.must("create_max_migration_files", "--recreate")
    assert "No changes detected" in project.must("makemigrations", "--check")


# django-pgtrigger


PROTECTED = """
    class Meta:
        triggers = [pgtrigger.Protect(name="protect_deletes", operation=pgtrigger.Delete)]

"""


def test_a_model_with_a_trigger_in_its_meta(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.append("settings.py", 'INSTALLED_APPS += ["pgtrigger"]')
    project.write("polls/models.py", f"import pgtrigger\n{project.read('polls/models.py')}{PROTECTED}")
    project.must("makemigrations", "-v0")
    project.add_field()
    project.must(COMMAND, LABEL, *NOW)
    assert "No changes detected" in project.must("makemigrations", "--check")


# django-migration-linter


@pytest.fixture
def linted(alias: str, tmp_path: Path) -> Project:
    options = connections[alias].settings_dict
    keys = ("ENGINE", "NAME", "USER", "PASSWORD", "HOST", "PORT")
    database = None if connections[alias].vendor == "sqlite" else {key: options[key] for key in keys}
    return beside(tmp_path, "django_migration_linter", database=database)


def lint(project: Project) -> subprocess.CompletedProcess[str]:
    return project.run("lintmigrations", "polls", "--no-cache", "--warnings-as-errors")


@pytest.mark.parametrize(
    "populate",
    ["Now()", '"2026-01-01 00:00Z"', 'F("pub_date") + timedelta(days=30)', "polls.populate.expires_date"],
)
def test_the_linter_lets_the_three_files_pass(linted: Project, populate: str) -> None:
    linted.write("polls/populate.py", "def expires_date(question):\n    return question.pub_date\n")
    linted.must(COMMAND, LABEL, "--populate", populate, *THREE)

    done = lint(linted)

    assert done.returncode == 0, done.stdout
    assert f"(polls, {ADD})... OK\n" in done.stdout
    assert f"(polls, {FILL})... OK\n" in done.stdout
    assert f"(polls, {REQUIRE})... IGNORE\n" in done.stdout


def test_the_linter_would_refuse_not_null_without_the_exemption(linted: Project) -> None:
    linted.must(COMMAND, LABEL, *NOW)
    name = "0002_question_expires_date"
    assert f"(polls, {name})... IGNORE\n" in lint(linted).stdout

    linted.write(
        f"polls/migrations/{name}.py", text(linted, name).replace("        IgnoreMigration(),\n", "")
    )

    done = lint(linted)
    assert done.returncode == 1
    assert f"(polls, {name})... ERR\n\tNOT NULL constraint on columns" in done.stdout


# Packages that put fields, or a table, beside those of a model


def with_models(folder: Path, app: str, models: str, more: dict[str, str] | None = None) -> Project:
    """Make a project whose app polls has these models, and tables for them."""
    project = Project(folder)
    project.append("settings.py", f"INSTALLED_APPS.insert(0, {app!r})\nUSE_I18N = True")
    project.append("settings.py", 'LANGUAGES = [("en", "English"), ("de", "German")]\nLANGUAGE_CODE = "en"')
    project.write("polls/models.py", models)
    for name, content in (more or {}).items():
        project.write(name, content)
    project.must("makemigrations", "polls", "-v0")
    project.must("migrate", "-v0")
    return project


HISTORY = """\
from django.db import models
from simple_history.models import HistoricalRecords


class Question(models.Model):
    question_text = models.CharField(max_length=200)
    pub_date = models.DateTimeField("date published")
    history = HistoricalRecords()
"""


def test_the_field_of_a_history_is_made_required_along_with_its_own(tmp_path: Path) -> None:
    project = with_models(tmp_path, "simple_history", HISTORY)
    code = (
        "from polls.models import Question; from django.utils.timezone import now; "
        "question = Question.objects.create(question_text='Who?', pub_date=now()); question.save()"
    )
    project.must("shell", "-c", code)
    project.add_field()

    alone = project.run(COMMAND, LABEL, "--populate", "F('pub_date')")
    both = f"{COMMAND} {LABEL} polls.HistoricalQuestion.expires_date"
    assert alone.returncode == 1
    assert f"python manage.py {both}" in alone.stderr
    project.must(*both.split(), "--populate", "F('pub_date')")
    project.must("migrate", "-v0")

    for table, rows in (("polls_question", 1), ("polls_historicalquestion", 2)):
        assert project.sql("default", f"SELECT count(*) FROM {table} WHERE expires_date = pub_date") == [
            (rows,)
        ]
    assert "No changes detected" in project.must("makemigrations", "--check")
    project.must("shell", "-c", "from polls.models import Question; Question.objects.get().save()")


TRANSLATED = {
    "polls/translation.py": """\
    from modeltranslation.translator import TranslationOptions, register

    from polls.models import Question


    @register(Question)
    class QuestionTranslation(TranslationOptions):
        fields = {fields}
    """
}


def test_a_translated_field_is_made_required_and_its_languages_are_added_after_it(tmp_path: Path) -> None:
    def translating(*fields: str) -> dict[str, str]:
        return {name: content.format(fields=fields) for name, content in TRANSLATED.items()}

    project = with_models(tmp_path, "modeltranslation", MODELS, translating("question_text"))
    project.seed("default", 3)
    project.add_field("summary = models.CharField(max_length=200)")
    for name, content in translating("question_text", "summary").items():
        project.write(name, content)
    typed = (COMMAND, "polls.Question.summary", "--populate", "F('question_text')")

    alone = project.run(*typed)
    assert alone.returncode == 1
    assert "Add field summary_de to question" in alone.stderr
    assert (
        "Add --only-this-field to write this field now, and run makemigrations polls for them" in alone.stderr
    )
    project.must(*typed, "--only-this-field")
    project.must("makemigrations", "polls")
    project.must("migrate", "-v0")
    project.must("update_translation_fields")

    columns = "summary, summary_en, summary_de"
    assert project.sql("default", f"SELECT {columns} FROM polls_question WHERE id = 2") == [
        ("Question 2", "Question 2", None)
    ]
    assert "No changes detected" in project.must("makemigrations", "--check")


# django-deferred-migrations


def deferred(project: Psycopg3Project, rows: int) -> Psycopg3Project:
    """Make a project that is migrated by it, and a field that is in no migration."""
    project.append("settings.py", 'INSTALLED_APPS.insert(0, "deferred_migrations")')
    project.must("makemigrations", "polls", "-v0")
    project.must("migrate_full")
    project.seed("default", rows)
    project.add_field()
    return project


def rules(project: Project, name: str) -> list[str]:
    return re.findall(r'^"(E\d+)": "[A-Z].*\.",$', "\n".join(marks(project, name)), re.MULTILINE)


@asks_for_python_3_12
def test_deferred_migrations_runs_one_file_before_the_deployment(psycopg3_project: Psycopg3Project) -> None:
    project = deferred(psycopg3_project, 3_000)
    project.must(COMMAND, LABEL, "--populate", "F('pub_date')", "--keep-guard")
    old_code = "INSERT INTO polls_question (question_text, pub_date) VALUES ('Old code', now())"

    assert rules(project, "0002_question_expires_date") == ["E003", "E004", "E106"]
    project.must("check_deploy_safety")
    project.must("migrate_pre_deploy")
    project.sql("default", old_code)
    project.must("migrate_post_deploy")

    nulls = "SELECT is_nullable FROM information_schema.columns WHERE column_name = 'expires_date'"
    assert project.sql("default", nulls) == [("NO",)]
    filled = "SELECT count(*) FROM polls_question WHERE expires_date = pub_date"
    assert project.sql("default", filled) == [(3_001,)]
    assert "No changes detected" in project.must("makemigrations", "--check", "polls")


@asks_for_python_3_12
def test_deferred_migrations_lets_three_files_pass(psycopg3_project: Psycopg3Project) -> None:
    project = deferred(psycopg3_project, 3)
    project.must(COMMAND, LABEL, *NOW, *THREE)

    assert [rules(project, name) for name in (ADD, FILL, REQUIRE)] == [
        ["E003", "E004", "E106"],
        ["E106"],
        ["E004", "E106"],
    ]
    project.must("check_deploy_safety")
    project.must("migrate_pre_deploy")
    assert applied(project) == ["0001_initial", ADD, FILL, REQUIRE]
    assert "No changes detected" in project.must("makemigrations", "--check", "polls")


@asks_for_python_3_12
def test_deferred_migrations_would_refuse_it_without_the_reasons(psycopg3_project: Psycopg3Project) -> None:
    project = deferred(psycopg3_project, 3)
    project.must(COMMAND, LABEL, *NOW)
    name = "polls/migrations/0002_question_expires_date.py"
    project.write(
        name, re.sub(r"    deploy_safety_allowed = \{.*?\n    \}\n", "", project.read(name), flags=re.DOTALL)
    )

    done = project.run("migrate_pre_deploy")

    assert done.returncode == 1
    assert sorted(re.findall(r"E\d{3}", done.stderr)) == ["E003", "E106"]
    assert applied(project) == ["0001_initial"]


# django-maintenance-tasks

TASKS = """
TASKS = {
    "default": {"BACKEND": "django.tasks.backends.immediate.ImmediateBackend", "QUEUES": ["default", "safemigrate"]}
}
SAFEMIGRATE_EXECUTOR = "tasks"
INSTALLED_APPS += ["django.contrib.admin", "django.contrib.messages", "django.contrib.sessions", "maintenance_tasks"]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
"""

TASK = """
from maintenance_tasks import MaintenanceTask
from polls.models import Question


class Shout(MaintenanceTask):
    def collection(self):
        return Question.objects.all()

    def process(self, question):
        question.question_text = question.question_text.upper()
        question.save(update_fields=["question_text"])
"""

BACKFILL = """
from django.db.models.functions import Lower

from polls.models import Question
from safemigrate.backfills import Backfill


class Whisper(Backfill):
    model = Question
    values = {"question_text": Lower("question_text")}
"""


@asks_for_python_3_12
def test_a_maintenance_task_and_a_backfill_stand_side_by_side(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.append("settings.py", TASKS)
    project.must("makemigrations", "-v0")
    project.must("migrate", "-v0")
    project.seed("default", 300)
    project.write("polls/maintenance_tasks.py", TASK)
    project.write("polls/backfills.py", BACKFILL)
    texts = "SELECT count(*) FROM polls_question WHERE question_text GLOB ?"

    project.must("maintenance_tasks", "run", "polls.maintenance_tasks.Shout")
    assert project.sql("default", texts, "QUESTION*") == [(300,)]
    project.must("backfill", "run", "polls.Whisper")
    assert project.sql("default", texts, "question*") == [(300,)]
    project.add_field()
    project.must(COMMAND, LABEL, *NOW)
    project.must("migrate")
    assert project.must("backfill", "list").count("succeeded") == 2
    project.must("maintenance_tasks", "recover")
    project.must("check", "--fail-level", "WARNING")


# All at once, and none


@pytest.mark.parametrize("shape", [(), THREE])
def test_all_of_them_at_once(tmp_path: Path, shape: tuple[str, ...]) -> None:
    project = beside(tmp_path, *ALL)
    project.seed("default", 3)
    project.must(COMMAND, LABEL, *NOW, *shape)

    project.must("check", "--fail-level", "WARNING")
    assert lint(project).returncode == 0
    project.must("migrate", "--pre-deploy")
    project.must("safemigrate")
    project.must("migrate")
    assert len(applied(project)) == (4 if shape else 2)
    assert "No changes detected" in project.must("makemigrations", "--check")


def test_without_them_the_files_name_none_of_them(tmp_path: Path) -> None:
    project = beside(tmp_path)
    project.must(COMMAND, LABEL, *NOW, *THREE)

    for name in (ADD, FILL, REQUIRE):
        assert marks(project, name) == []
        assert not any(app in text(project, name) for app in ALL)
