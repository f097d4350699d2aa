"""What is typed wrong gets one paragraph with the cure, and nothing is changed: no file, no table, no row.

Each case is typed in a shell, in a project of its own.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.projects import Project

COMMAND = "add_required_field"
LABEL = "polls.Question.expires_date"

MODELS = """\
from django.contrib.contenttypes.fields import GenericForeignKey
from django.contrib.contenttypes.models import ContentType
from django.db import models


class Timed(models.Model):
    created_at = models.DateTimeField(null=True)

    class Meta:
        abstract = True


class Topic(models.Model):
    title = models.CharField(max_length=50)


class Question(Timed):
    question_text = models.CharField(max_length=200)
    pub_date = models.DateTimeField("date published")
    votes = models.IntegerField(default=0)
    topic = models.ForeignKey(Topic, models.CASCADE, null=True)
    content_type = models.ForeignKey(ContentType, models.CASCADE, null=True)
    object_id = models.IntegerField(null=True)
    about = GenericForeignKey()
"""
NEW = """\
    expires_date = models.DateTimeField("expires at")
    code = models.CharField(max_length=5)
    slug = models.SlugField(unique=True)
    kind = models.ForeignKey(Topic, models.CASCADE, related_name="of_kind")
"""
FUNCTIONS = """\
def nothing(row):
    return None


def failing(row):
    raise ValueError(f"no date in {row.pk}")


def two(first, second, third):
    return first


def read_others(apps):
    return apps.get_model("others", "Thing").objects.values("pk")[:1]


def same(row):
    return "same"


NOT_A_FUNCTION = 5
"""
MIGRATION = """\
from datetime import timedelta

from django.db import migrations, models
from django.db.models import F, Value
from django.db.models.functions import Cast, Length

from polls import populate
from safemigrate.operations import *
from safemigrate.populate import FromApps, FromRelated, PerBatch, PerRow, Suffix


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("polls", "0001_initial")]
    operations = [
        {operations}
    ]
"""
DATE, CODE = "models.DateTimeField()", "models.CharField(max_length=5)"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad-inputs")
    project = Project(folder)
    project.write("polls/models.py", MODELS)
    project.write("polls/populate.py", FUNCTIONS)
    project.write("polls/apps.py", APPS)
    project.write("others/__init__.py", "")
    project.write(
        "others/models.py", "from django.db import models\n\n\nclass Thing(models.Model):\n    pass\n"
    )
    project.write("others/migrations/__init__.py", "")
    project.append("settings.py", 'INSTALLED_APPS += ["others", "things.pages"]')
    for name in ("things/__init__.py", "things/pages/__init__.py", "things/pages/models.py"):
        project.write(name, "")
    project.write("things/pages/apps.py", PAGES)
    project.must("makemigrations", "-v0", "polls", "others")
    project.must("migrate", "-v0")
    for number in range(1, 4):
        project.sql(
            "default",
            "INSERT INTO polls_question (question_text, pub_date, votes) VALUES (?, '2026-01-01 12:00:00', 0)",
            f"Question {number}",
        )
    return folder


APPS = 'from django.apps import AppConfig\n\n\nclass Polls(AppConfig):\n    name = "polls"\n'
PAGES = (
    "from django.apps import AppConfig\n\n\n"
    'class Pages(AppConfig):\n    name = "things.pages"\n    label = "things_pages"\n'
)


@pytest.fixture
def project(template: Path, tmp_path: Path) -> Project:
    made = Project(tmp_path)
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    return made


def everything(project: Project) -> Any:
    """All files of migrations, and all that the database has but for the runs' records."""
    files = {path: path.read_bytes() for path in project.folder.rglob("migrations/*.py")}
    schema = project.sql("default", "SELECT sql FROM sqlite_master ORDER BY name")
    rows = project.sql("default", "SELECT * FROM polls_question ORDER BY id")
    return files, schema, rows


def said(project: Project, *typed: str, code: int = 1, changes: bool = False, **environment: str) -> str:
    """Type it, see that it is refused in one paragraph and changes nothing, and return the paragraph."""
    before = everything(project)
    done = project.run(*typed, **environment)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    if not changes:
        assert everything(project) == before
    text = done.stderr.strip()
    assert len(text) < 1_500
    return text


def new_fields(project: Project) -> None:
    project.append("polls/models.py", NEW)


TYPED: dict[str, tuple[Sequence[str], str]] = {
    # Labels
    "no dots": (["expires_date"], "is not of the form app.Model.field, as in polls.Question.expires_date"),
    "two parts": (["Question.expires_date"], "is not of the form app.Model.field"),
    "four parts": (["polls.models.Question.expires_date"], "is not of the form app.Model.field"),
    "a label with a space": (["polls.Question.expires date"], "is not of the form app.Model.field"),
    "an empty label": ([""], "is not of the form app.Model.field"),
    "a misspelt app": (["poll.Question.expires_date"], "Did you mean polls?"),
    "no such app": (["shop.Question.expires_date"], "Is it in INSTALLED_APPS?"),
    "an app by its module": (["pages.Page.title"], "Its label is things_pages: name things_pages.Page"),
    "a misspelt model": (["polls.Qestion.expires_date"], "Did you mean Question?"),
    "an abstract model": (["polls.Timed.created_at"], "polls.Timed is abstract, so it has no table."),
    "a misspelt field": (["polls.Question.expires_dat"], "Did you mean expires_date?"),
    "no such field": (["polls.Question.zzz"], "Add it to the model first; the command reads it from there."),
    "a generic foreign key": (
        ["polls.Question.about"],
        "name its two columns, polls.Question.content_type and polls.Question.object_id",
    ),
    "the primary key": (["polls.Question.id"], "a primary key cannot be filled afterwards"),
    "a nullable field": (["polls.Question.created_at"], "it is null=True, so old rows need no value"),
    "a reverse relation": (["polls.Topic.question"], "has no column of its own"),
    "a field that is there": (["polls.Question.votes"], "is already in the migrations"),
    # Populates
    "nothing": ([LABEL], "old rows need a value from elsewhere. Say how:"),
    "an empty text": ([LABEL, "--populate", ""], "--populate is empty"),
    "no Python": ([LABEL, "--populate", "F('pub_date'"], "--populate is not Python"),
    "a statement": ([LABEL, "--populate", "x = 1"], "--populate is not Python"),
    "a bare name": ([LABEL, "--populate", "pub_date"], 'write F("pub_date")'),
    "a bare name in a sum": (
        [LABEL, "--populate", "pub_date + timedelta(days=30)"],
        'pub_date is a field of Question: write F("pub_date")',
    ),
    "a field that is not there": ([LABEL, "--populate", "F('pub_dat')"], "pub_dat"),
    "another language's true": ([LABEL, "--populate", "true"], "Did you mean True?"),
    "another language's null": ([LABEL, "--populate", "null"], "None"),
    "None": ([LABEL, "--populate", "None"], "None"),
    "a bare date": ([LABEL, "--populate", "2024-01-01"], "date(2024, 1, 1)"),
    "a call of a function": ([LABEL, "--populate", "polls.populate.nothing()"], "polls.populate.nothing"),
    "an unknown function": ([LABEL, "--populate", "slugify(question_text)"], "polls/populate.py"),
    "a misspelt function": ([LABEL, "--populate", "Coalesc('pub_date')"], "Did you mean Coalesce?"),
    "an unknown path": ([LABEL, "--populate", "polls.populate.missing"], "cannot be imported"),
    "a path to a number": ([LABEL, "--populate", "polls.populate.NOT_A_FUNCTION"], "5"),
    "a function of three": ([LABEL, "--populate", "polls.populate.two"], "takes"),
    "a lambda": ([LABEL, "--populate", "lambda row: row.pub_date"], "lambda"),
    "code that imports": ([LABEL, "--populate", "__import__('os').system('true')"], "__import__"),
    "a text for a date": ([LABEL, "--populate", "'soon'"], "soon"),
    "a text that is too long": (["polls.Question.code", "--populate", "'too long'"], "too long"),
    "one value for a unique field": (["polls.Question.slug", "--populate", "'a'"], "unique"),
    "Suffix where nothing is unique": (
        ["polls.Question.code", "--populate", "PerRow('polls.populate.same', unique=Suffix('-'))"],
        "unique",
    ),
    "a relation that is not there": ([LABEL, "--populate", "FromRelated('author__born')"], "author"),
    "a path that ends in a relation": ([LABEL, "--populate", "FromRelated('topic')"], "FromRelated"),
    "a related field that is not there": ([LABEL, "--populate", "FromRelated('topic__born')"], "born"),
    "a window": ([LABEL, "--populate", "Window(RowNumber())"], "indow"),
    "an aggregate": ([LABEL, "--populate", "Max('pub_date')"], "Max"),
    "a populate too many": ([LABEL, "--populate", "Now()", "--populate", "Now()"], "give it once for all"),
    # Options
    "a name with a dash": ([LABEL, "--populate", "Now()", "--name", "a-b"], "must be a Python identifier"),
    "a guard that is kept in three": (
        [LABEL, "--populate", "Now()", "--keep-guard", "--phases", "3"],
        "leave --keep-guard out",
    ),
    "a guard by a function": (
        [LABEL, "--populate", "polls.populate.same", "--keep-guard"],
        "there can be no guard",
    ),
    "an unknown database": ([LABEL, "--populate", "Now()", "--migrate", "--database", "x"], "no alias x"),
    "a database without migrate": ([LABEL, "--populate", "Now()", "--database", "archive"], "add --migrate"),
    "some and all databases": (
        [LABEL, "--populate", "Now()", "--migrate", "--database", "archive", "--all-databases"],
        "give one of them",
    ),
    "a plan that migrates": ([LABEL, "--populate", "Now()", "--plan", "--migrate"], "leave --migrate"),
    "a format without a plan": ([LABEL, "--populate", "Now()", "--format", "json"], "add --plan"),
    "a dry run that migrates": ([LABEL, "--populate", "Now()", "--dry-run", "--migrate"], "--dry-run"),
}


@pytest.mark.parametrize("case", TYPED)
def test_a_command_that_cannot_be_meant(project: Project, case: str) -> None:
    new_fields(project)
    arguments, says = TYPED[case]
    assert says in said(project, COMMAND, *arguments, "--only-this-field")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([LABEL, "--batch-size", "0"], "is not a number of rows, 1 or more"),
        ([LABEL, "--batch-size", "many"], "is not a number of rows, 1 or more"),
        ([LABEL, "--phases", "2"], "invalid choice"),
        ([LABEL, "--colour", "red"], "unrecognized arguments"),
        ([], "required: app.Model.field"),
    ],
)
def test_an_option_that_is_none(project: Project, arguments: list[str], says: str) -> None:
    assert says in said(project, COMMAND, *arguments, code=2)


#: Operations written by hand, with what `migrate` says.
WRITTEN: dict[str, tuple[str, str]] = {
    "no such field": ('Populate("question", "expires", 1),', "has no field 'expires'"),
    "required before it is there": (f'SetNotNull("question", "expires_date", {DATE}),', "has no field"),
    "a nullable field": (
        'AddRequiredField("question", "expires_date", models.DateTimeField(null=True), F("pub_date")),',
        "it is null=True",
    ),
    "an unknown column": (
        f'AddRequiredField("question", "expires_date", {DATE}, F("pub_dat")),',
        "Cannot resolve keyword 'pub_dat'",
    ),
    "a related column": (
        f'AddRequiredField("question", "expires_date", {DATE}, F("topic__title")),',
        "FromRelated",
    ),
    "a path to nothing": (
        f'AddRequiredField("question", "expires_date", {DATE}, "polls.populate.missing"),',
        "cannot be imported",
    ),
    "a function of three": (
        f'AddRequiredField("question", "expires_date", {DATE}, populate.two),',
        "takes",
    ),
    "a text for a date": (f'AddRequiredField("question", "expires_date", {DATE}, "soon"),', "'soon'"),
    "None": (f'AddRequiredField("question", "expires_date", {DATE}, None),', "None"),
    "a batch of no rows": (
        f'AddRequiredField("question", "expires_date", {DATE}, F("pub_date"), batch_size=0),',
        "batch_size must be a number of rows",
    ),
    "a dict for one field": (
        f'AddNullableField("question", "code", {CODE}), Populate("question", ["code", "votes"], {{"code": "a"}}),',
        "votes",
    ),
    "a guard by a function": (
        f'AddNullableField("question", "code", {CODE}), GuardWrites("question", "code", populate.same),',
        "cannot run that",
    ),
    "a populate of a required field": ('Populate("question", "votes", 5),', "would change nothing"),
    "in a transaction": (
        f'AddRequiredField("question", "code", {CODE}, "a"),\n    ]\n    atomic = True\n    _ = [',
        "atomic = False",
    ),
}


@pytest.mark.parametrize("case", WRITTEN)
def test_an_operation_that_cannot_be_meant(project: Project, case: str) -> None:
    operations, says = WRITTEN[case]
    project.write("polls/migrations/0002_written.py", MIGRATION.replace("{operations}", operations))
    text = said(project, "migrate", "polls")
    assert says in text
    assert "0002_written" not in str(project.sql("default", "SELECT name FROM django_migrations"))


#: What is found in the rows, when it is filled: all the others have their value.
IN_ROWS: dict[str, tuple[str, str]] = {
    "None from a function": (f'AddRequiredField("question", "code", {CODE}, populate.nothing),', "3 rows"),
    "a function that raises": (
        f'AddRequiredField("question", "code", {CODE}, populate.failing),',
        "no date in 1",
    ),
    "the same value in a unique field": (
        'AddRequiredField("question", "slug", models.SlugField(unique=True), populate.same),',
        "same",
    ),
    "a row that is not there": (
        'AddRequiredField("question", "kind", models.ForeignKey("polls.Topic", models.CASCADE), 99),',
        "99",
    ),
    "a NULL from an expression": (
        'AddRequiredField("question", "expires_date", models.DateTimeField(), F("created_at")),',
        "3 rows",
    ),
}


@pytest.mark.parametrize("case", IN_ROWS)
def test_rows_that_have_no_value(project: Project, case: str) -> None:
    operations, says = IN_ROWS[case]
    project.write("polls/migrations/0002_written.py", MIGRATION.replace("{operations}", operations))
    text = said(project, "migrate", "polls", changes=True)
    assert says in text
    assert "run migrate again" in text


def test_another_app_without_a_dependency(project: Project) -> None:
    """On a new database that app has no model yet; the line to add is said."""
    operations = (
        f'AddNullableField("question", "code", {CODE}), '
        'GuardWrites("question", "code", FromApps(populate.read_others)),'
    )
    project.write("polls/migrations/0002_written.py", MIGRATION.replace("{operations}", operations))
    project.path("default.sqlite3").unlink()
    project.must("migrate", "-v0", "polls", "0001")
    text = said(project, "migrate", "polls", changes=True)
    assert 'dependencies = [..., ("others", "0001_initial")]' in text


SETTINGS: dict[str, tuple[str, str]] = {
    "a text for a number": ('SAFEMIGRATE_BATCH_SIZE = "many"', "SAFEMIGRATE_BATCH_SIZE"),
    "less than nothing": ("SAFEMIGRATE_LOCK_TIMEOUT = -1", "SAFEMIGRATE_LOCK_TIMEOUT"),
    "a throttle that is not there": ('SAFEMIGRATE_THROTTLES = ["polls.Slow"]', "polls.Slow"),
    "an executor that is none": ('SAFEMIGRATE_EXECUTOR = "cron"', "SAFEMIGRATE_EXECUTOR"),
    "a runs database that is none": ('SAFEMIGRATE_RUNS_DATABASE = "runs"', "SAFEMIGRATE_RUNS_DATABASE"),
}


@pytest.mark.parametrize("case", SETTINGS)
@pytest.mark.parametrize("typed", [["migrate", "polls"], ["check"], ["backfill", "list"]], ids=" ".join)
def test_a_setting_that_cannot_be_meant(project: Project, case: str, typed: list[str]) -> None:
    line, says = SETTINGS[case]
    project.append("settings.py", line)
    assert says in said(project, *typed)


BACKFILL: dict[str, tuple[Sequence[str], str]] = {
    "no such run": (["show", "7"], "7"),
    "no such run to pause": (["pause", "7"], "7"),
    "a field without a fill": (["run", "polls.Question.votes"], "votes"),
    "a misspelt field": (["run", "polls.Question.vote"], "Did you mean votes?"),
    "no such field": (["verify", "polls.Question.zzz"], "has no field zzz"),
    "an unknown database": (["run", "polls.Question.votes", "--database", "x"], "no alias x"),
}


@pytest.mark.parametrize("case", BACKFILL)
def test_a_backfill_that_cannot_be_meant(project: Project, case: str) -> None:
    arguments, says = BACKFILL[case]
    assert says in said(project, "backfill", *arguments)


AWAY = (
    'DATABASES["default"] = {"ENGINE": "django.db.backends.postgresql", "NAME": "polls", "HOST": "127.0.0.1", '
    '"PORT": "9"}'
)
WHOLE = f'AddRequiredField("question", "code", {CODE}, "a"),'


def test_a_plan_while_the_database_is_away(project: Project) -> None:
    new_fields(project)
    project.append("settings.py", AWAY)
    typed = [COMMAND, "polls.Question.code", "--populate", "'a'", "--plan", "--only-this-field"]
    done = project.run(*typed, "--database", "default")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "See to it that it answers, and plan again" in " ".join(
        done.stdout.split()
    )  # The driver's own words decide where lines end.


def test_a_file_that_may_not_be_written(project: Project) -> None:
    project.write("polls/migrations/0002_written.py", MIGRATION.replace("{operations}", WHOLE))
    project.append("settings.py", 'DATABASES["default"]["NAME"] = f"file:{FOLDER}/default.sqlite3?mode=ro"')
    project.append("settings.py", 'DATABASES["default"]["OPTIONS"] = {"uri": True}')
    assert "readonly" in said(project, "migrate", "polls")


def test_a_disk_that_is_full(project: Project) -> None:
    project.write("polls/migrations/0002_written.py", MIGRATION.replace("{operations}", WHOLE))
    project.sql("default", "UPDATE polls_question SET question_text = ?", "x" * 1_000_000)
    pages = project.sql("default", "PRAGMA page_count")[0][0]
    project.append(
        "settings.py",
        f'DATABASES["default"]["OPTIONS"] = {{"init_command": "PRAGMA max_page_count = {pages}"}}',
    )
    text = said(project, "migrate", "polls", changes=True)
    assert "full" in text
    assert "run migrate again" in text
