"""The command, typed in a shell, in a project of its own."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.projects import EXPIRES, MODELS, SETTINGS, Project

COMMAND = "add_required_field"
LABEL = "polls.Question.expires_date"
THIRTY_DAYS = 'F("pub_date") + timedelta(days=30)'

WRITTEN = """\
from datetime import timedelta

from django.db import migrations, models
from django.db.models import F
from safemigrate.operations import AddRequiredField


class Migration(migrations.Migration):
    atomic = False

    dependencies = [
        ("polls", "0001_initial"),
    ]

    operations = [
        AddRequiredField(
            model_name="question",
            name="expires_date",
            field=models.DateTimeField(verbose_name="expires at"),
            populate=F("pub_date") + timedelta(days=30),
        ),
    ]
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path).made()


@pytest.fixture
def expiring(project: Project) -> Project:
    """The field is in models.py, and in no migration."""
    project.add_field()
    return project


def refused(project: Project, *arguments: str, app: str = "polls", prefix: tuple[str, ...] = ()) -> str:
    """Run the command, see that it fails and leaves the migrations as they were, and return the error."""
    before = project.migrations(app)
    done = project.run(COMMAND, *arguments, prefix=prefix)
    assert done.returncode == 1, done.stdout + done.stderr
    assert project.migrations(app) == before
    text, _, address = done.stderr.strip().removeprefix("CommandError: ").partition("\nSee https://")
    assert not address or re.search(r"/reference/errors\.md#[a-z]+$", address)
    return text


def body(text: str) -> str:
    """Return a migration's text without the line that says when it was made."""
    return text.partition("\n\n")[2]


def required(project: Project, alias: str, column: str = "expires_date") -> bool:
    (flag,) = [row[3] for row in project.sql(alias, "PRAGMA table_info(polls_question)") if row[1] == column]
    return bool(flag)


# What it writes


def test_it_writes_one_migration_and_says_what_to_type_next(expiring: Project) -> None:
    out = expiring.must(COMMAND, LABEL, "--populate", THIRTY_DAYS)

    assert out == (
        "Wrote polls/migrations/0002_question_expires_date.py\n"
        "Next, on each database:\n"
        "    python manage.py migrate polls\n"
        "Code deployed before polls.Question.expires_date can still insert rows: a write guard fills them,\n"
        "where the database can. Once the column is required, such inserts fail. If old code runs on after that,\n"
        "remove the file, and write it again with --keep-guard, or three files with --phases 3.\n"
    )
    assert expiring.migrations() == ["0001_initial.py", "0002_question_expires_date.py"]
    assert body(expiring.read("polls/migrations/0002_question_expires_date.py")) == WRITTEN
    assert "No changes detected" in expiring.must("makemigrations", "--check")


def test_what_it_wrote_fills_the_column_and_makes_it_required(expiring: Project) -> None:
    expiring.seed("default", 50)
    expiring.must(COMMAND, LABEL, "--populate", THIRTY_DAYS)

    expiring.must("migrate", "polls")

    assert required(expiring, "default")
    rows = expiring.sql(
        "default",
        "SELECT count(*) FROM polls_question "
        "WHERE julianday(expires_date) - julianday(pub_date) BETWEEN 29.999 AND 30.001",
    )
    assert rows == [(50,)]


@pytest.mark.slow
def test_three_phases_are_three_files_that_say_when_to_deploy_them(expiring: Project) -> None:
    expiring.seed("default", 5)
    out = expiring.must(COMMAND, LABEL, "--populate", "Now()", "--phases", "3", "--batch-size", "500")

    names = [
        "0002_question_expires_date_add",
        "0003_question_expires_date_fill",
        "0004_question_expires_date_require",
    ]
    assert expiring.migrations()[1:] == [f"{name}.py" for name in names]
    texts = [expiring.read(f"polls/migrations/{name}.py") for name in names]
    assert [text.splitlines()[0] for text in texts] == [
        "# Deploy 1 of 3: migrate this before the new code runs anywhere.",
        "# Deploy 2 of 3: migrate this at any time after the first; run again, it does no harm.",
        "# Deploy 3 of 3: migrate this when no old code is left running.",
    ]
    assert all("\n    atomic = False\n" in text for text in texts)
    assert "batch_size=500" in texts[1]
    assert "Next, in three deployments:" in out
    for name, done in zip(names, [False, False, True], strict=True):
        assert f"    python manage.py migrate polls {name}  # Deploy" in out
        expiring.must("migrate", "polls", name)
        assert required(expiring, "default") is done
    assert "No changes detected" in expiring.must("makemigrations", "--check")


def test_between_the_three_files_old_code_inserts_and_the_database_fills(expiring: Project) -> None:
    typed = ("--populate", 'Concat("question_text", Value("!"))', "--phases", "3")
    expiring.write("polls/models.py", MODELS)
    expiring.add_field("shout = models.TextField()")
    expiring.seed("default", 3)
    expiring.must(COMMAND, "polls.Question.shout", *typed)

    expiring.must("migrate", "polls", "0002")
    expiring.seed("default", 1)  # as old code does: without the column
    assert expiring.sql("default", "SELECT id, shout FROM polls_question WHERE shout IS NOT NULL") == [
        (4, "Question 1!")
    ]
    expiring.must("migrate", "polls", "0003")
    expiring.seed("default", 1)
    expiring.must("migrate", "polls", "0004")

    wrong = "SELECT count(*) FROM polls_question WHERE shout <> question_text || '!'"
    assert expiring.sql("default", wrong) == [(0,)]
    assert required(expiring, "default", "shout")
    assert expiring.sql("default", "SELECT name FROM sqlite_master WHERE type = 'trigger'") == []


@pytest.mark.slow
def test_a_python_function_has_no_guard_and_the_output_says_what_follows(expiring: Project) -> None:
    expiring.write("polls/populate.py", "def expires_date(question):\n    return question.pub_date\n")
    typed = [COMMAND, LABEL, "--populate", "polls.populate.expires_date"]

    one = expiring.must(*typed, "--dry-run")
    three = expiring.must(*typed, "--phases", "3")

    reason = (
        "expires_date(row) is computed in Python, and a database cannot run that when old code inserts a row."
    )
    assert one.endswith(
        "Code deployed before polls.Question.expires_date still inserts NULL. No write guard is possible:\n"
        f"{reason}\n"
        "Such rows are filled at the end. Once the column is required, such inserts fail. If old code runs on after\n"
        "that, remove the file, and write three with --phases 3.\n"
    )
    assert three.endswith(
        "Code that does not know polls.Question.expires_date yet inserts NULL until the third file, which fills it; "
        "new code\nmust cope with that. No write guard is possible:\n"
        f"{reason}\n"
    )
    for name in expiring.migrations()[1:]:
        assert "uard" not in expiring.read(f"polls/migrations/{name}")
    expiring.must("migrate", "polls", "0002")
    expiring.seed("default", 3)
    expiring.must("migrate", "polls")
    assert required(expiring, "default")


def test_the_guard_is_kept_where_that_is_wanted(expiring: Project) -> None:
    out = expiring.must(COMMAND, LABEL, "--populate", "Now()", "--keep-guard")

    assert "            keep_guard=True,\n" in expiring.read("polls/migrations/0002_question_expires_date.py")
    assert out.endswith(
        "Code that does not know polls.Question.expires_date yet may insert rows, now and after the column is "
        "required: the write\n"
        "guard fills them. Where the database cannot, migrate says so. When no such code is left, take the guard "
        'down in\na migration with atomic = False: UnguardWrites("question", "expires_date")\n'
    )


def test_a_db_default_needs_no_guard_and_no_remark(project: Project) -> None:
    project.add_field('state = models.CharField(max_length=10, db_default="new")')

    out = project.must(COMMAND, "polls.Question.state", "--dry-run")

    assert out.endswith("    ]\n")
    message = refused(project, "polls.Question.state", "--keep-guard")
    assert message == (
        "polls.Question.state has a db_default, which goes on filling the rows of code that does not know the "
        "field. There is no guard to keep: leave --keep-guard out."
    )
    project.must(COMMAND, "polls.Question.state", "--phases", "3")
    assert all("uard" not in project.read(f"polls/migrations/{name}") for name in project.migrations()[1:])


def test_three_files_at_once_are_done_with_a_warning(expiring: Project) -> None:
    done = expiring.run(COMMAND, LABEL, "--populate", "Now()", "--phases", "3", "--migrate")

    assert done.returncode == 0
    assert done.stderr.startswith(
        "--migrate applies all files now, and the order in which they are to be deployed is lost: code that does "
        "not know\nthat the field is required cannot insert any more when this ends. That is right only where no "
        "such code runs.\n"
    )
    assert required(expiring, "default")


def test_a_dry_run_prints_what_a_real_run_writes(expiring: Project) -> None:
    out = expiring.must(COMMAND, LABEL, "--populate", THIRTY_DAYS, "--dry-run")

    assert out.startswith("Would write polls/migrations/0002_question_expires_date.py:\n\n# Generated by")
    assert WRITTEN in out
    assert expiring.migrations() == ["0001_initial.py"]


@pytest.mark.slow
def test_several_fields_make_one_migration_for_each_app(project: Project) -> None:
    project.write("blog/__init__.py", "")
    project.write("blog/migrations/__init__.py", "")
    project.write(
        "blog/models.py", "from django.db import models\n\n\nclass Entry(models.Model):\n    pass\n"
    )
    project.write("settings.py", SETTINGS.replace('"polls",', '"polls", "blog",'))
    project.must("makemigrations", "blog", "-v0")
    project.add_field()
    project.add_field('state = models.CharField(max_length=10, default="new")')
    project.write(
        "blog/models.py", project.read("blog/models.py").replace("pass", "at = models.DateTimeField()")
    )

    project.must(
        *(COMMAND, LABEL, "polls.Question.state", "blog.Entry.at", "--name", "grow"),
        *("--populate", "Now()", "--populate", '"old"', "--populate", "Now()"),
    )

    assert project.migrations() == ["0001_initial.py", "0002_grow.py"]
    assert project.migrations("blog") == ["0001_initial.py", "0002_grow.py"]
    text = project.read("polls/migrations/0002_grow.py")
    assert text.count("AddRequiredField(") == 2
    assert 'populate="old"' in text
    assert "No changes detected" in project.must("makemigrations", "--check")


def test_a_foreign_key_brings_its_dependencies(project: Project) -> None:
    project.write(
        "polls/models.py", MODELS.replace("from django", "from django.conf import settings\nfrom django", 1)
    )
    project.add_field("owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE)")
    project.add_field('kind = models.ForeignKey("contenttypes.ContentType", on_delete=models.PROTECT)')

    project.must(COMMAND, "polls.Question.owner", "polls.Question.kind", "--populate", "1")

    (name,) = project.migrations()[1:]
    text = project.read(f"polls/migrations/{name}")
    assert "migrations.swappable_dependency(settings.AUTH_USER_MODEL)," in text
    assert '("contenttypes", "0002_remove_content_type_name"),' in text
    assert "to=settings.AUTH_USER_MODEL" in text
    assert "No changes detected" in project.must("makemigrations", "--check")


def test_the_fields_own_default_serves_and_the_output_says_so(project: Project) -> None:
    project.write("polls/models.py", "import uuid\n\n" + MODELS)
    project.add_field("code = models.UUIDField(default=uuid.uuid4, unique=True)")
    project.seed("default", 20)

    out = project.must(COMMAND, "polls.Question.code")
    project.must("migrate")

    assert out.startswith(
        "polls.Question.code: without --populate, its default, uuid.uuid4, called once for each old row.\n"
    )
    assert "populate=uuid.uuid4,\n" in project.read("polls/migrations/0002_question_code.py")
    assert project.sql("default", "SELECT count(DISTINCT code) FROM polls_question") == [(20,)]
    assert "No changes detected" in project.must("makemigrations", "--check")


def test_a_function_is_named_by_its_dotted_path(expiring: Project) -> None:
    expiring.write("polls/populate.py", "def expires_date(question):\n    return question.pub_date\n")
    expiring.seed("default", 3)

    expiring.must(COMMAND, LABEL, "--populate", "polls.populate.expires_date", "--migrate", "-v0")

    text = expiring.read("polls/migrations/0002_question_expires_date.py")
    assert 'populate="polls.populate.expires_date",' in text
    assert expiring.sql("default", "SELECT count(*) FROM polls_question WHERE expires_date = pub_date") == [
        (3,)
    ]


def test_max_migration_txt_is_kept_in_step(expiring: Project) -> None:
    expiring.write("polls/migrations/max_migration.txt", "0001_initial\n")

    expiring.must(COMMAND, LABEL, "--populate", "Now()", "--phases", "3")

    assert expiring.read("polls/migrations/max_migration.txt") == "0004_question_expires_date_require\n"


def test_migration_modules_is_obeyed(expiring: Project) -> None:
    expiring.path("polls/migrations").rename(expiring.path("polls/schema"))
    expiring.append("settings.py", 'MIGRATION_MODULES = {"polls": "polls.schema"}')

    expiring.must(COMMAND, LABEL, "--populate", "Now()")

    assert expiring.path("polls/schema/0002_question_expires_date.py").exists()


# --migrate


def test_migrate_goes_over_all_databases_and_ends_with_a_table(expiring: Project) -> None:
    expiring.seed("default", 30)
    expiring.seed("archive", 4)

    out = expiring.must(COMMAND, LABEL, "--populate", THIRTY_DAYS, "--migrate", "--all-databases")

    table = [line.split() for line in out.splitlines()[-3:]]
    assert table[0] == ["database", "rows", "filled", "seconds", "state"]
    assert [(row[0], row[1], row[2], row[4]) for row in table[1:]] == [
        ("default", "30", "30", "done"),
        ("archive", "4", "4", "done"),
    ]
    assert required(expiring, "default")
    assert required(expiring, "archive")


def test_each_database_has_a_heading(expiring: Project) -> None:
    out = expiring.must(COMMAND, LABEL, "--populate", "Now()", "--migrate", "--all-databases")

    assert out.index("Database default:\n") < out.index("Database archive:\n") < out.index("database  rows")


def test_migrate_takes_the_default_database_or_those_that_are_named(expiring: Project) -> None:
    expiring.must(COMMAND, LABEL, "--populate", "Now()", "--migrate", "--database", "archive")

    columns = [row[1] for row in expiring.sql("default", "PRAGMA table_info(polls_question)")]
    assert "expires_date" not in columns
    assert required(expiring, "archive")


@pytest.mark.slow
def test_an_alias_that_fails_does_not_stop_the_others_and_the_same_command_finishes(
    expiring: Project,
) -> None:
    expiring.write(
        "polls/populate.py",
        "def expires_date(question):\n"
        '    if question.question_text == "Question 7":\n'
        '        raise ValueError("no date")\n'
        "    return question.pub_date\n",
    )
    expiring.seed("default", 10)
    expiring.seed("archive", 3)
    typed = [COMMAND, LABEL, "--populate", "polls.populate.expires_date", "--migrate", "--all-databases"]

    first = expiring.run(*typed)

    assert first.returncode == 1
    rows = [line.split() for line in first.stdout.splitlines()[-2:]]
    assert [(row[0], row[1], row[2], row[4]) for row in rows] == [
        ("default", "10", "9", "failed"),
        ("archive", "3", "3", "done"),
    ]
    assert "1 of 2 databases failed." in first.stderr
    assert "7: ValueError: no date" in first.stderr
    assert required(expiring, "archive")
    assert not required(expiring, "default")

    expiring.write("polls/populate.py", "def expires_date(question):\n    return question.pub_date\n")
    second = expiring.must(*typed)

    assert second.startswith("polls.0002_question_expires_date adds polls.Question.expires_date already.\n")
    rows = [line.split(maxsplit=4) for line in second.splitlines()[-2:]]
    assert [(row[0], row[1], row[2], row[4]) for row in rows] == [
        ("default", "10", "1", "done"),
        ("archive", "3", "0", "nothing to fill"),
    ]
    assert expiring.migrations() == ["0001_initial.py", "0002_question_expires_date.py"]
    assert required(expiring, "default")


@pytest.mark.slow
def test_all_databases_are_those_of_their_own_that_the_router_allows(expiring: Project) -> None:
    expiring.append(
        "settings.py",
        'DATABASES["replica"] = DATABASES["default"] | {"TEST": {"MIRROR": "default"}}\n'
        'DATABASES["same"] = DATABASES["default"]\n'
        'DATABASES["reports"] = DATABASES["default"] | {"NAME": FOLDER / "reports.sqlite3"}\n'
        'DATABASE_ROUTERS = ["routers.NoReports"]\n',
    )
    expiring.write(
        "routers.py",
        "class NoReports:\n"
        "    def allow_migrate(self, db, app_label, **hints):\n"
        '        return db != "reports"\n',
    )

    out = expiring.must(COMMAND, LABEL, "--populate", "Now()", "--migrate", "--all-databases", "-v1")

    assert [line.split()[0] for line in out.splitlines()[-2:]] == ["default", "archive"]
    assert refused(expiring, LABEL, "--migrate", "--database", "reports") == (
        "The database routers do not allow polls.Question to be migrated on reports."
    )


# On a terminal


def on_terminal(project: Project, *arguments: str, typed: str) -> tuple[int, str]:
    """Run the command on a terminal of its own, type into it, and return the exit code and all it showed."""
    master, slave = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "manage.py", COMMAND, *arguments],
        cwd=project.folder,
        env=project.environment(),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    ) as process:
        os.close(slave)
        os.write(master, typed.encode())
        shown = b""
        while chunk := _read(master):
            shown += chunk
        code = process.wait(timeout=60)
    os.close(master)
    return code, shown.decode().replace("\r\n", "\n")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux says EIO when the other side is closed.
        return b""


def test_the_prompt_explains_and_asks_again_after_a_mistake(expiring: Project) -> None:
    code, shown = on_terminal(expiring, LABEL, typed=f'F("pub_dat")\n{THIRTY_DAYS}\n')

    assert code == 0, shown
    assert (
        "Old rows need a value for polls.Question.expires_date (DateTimeField). How do they get it?" in shown
    )
    assert 'F("pub_date") + timedelta(days=30)       from another column, computed by the database' in shown
    assert "polls.Question has no field pub_dat. Did you mean pub_date?" in shown
    assert "Wrote polls/migrations/0002_question_expires_date.py" in shown
    assert body(expiring.read("polls/migrations/0002_question_expires_date.py")) == WRITTEN


@pytest.mark.parametrize("typed", ["q\n", "\x04"])
def test_the_prompt_is_left_with_nothing_written(expiring: Project, typed: str) -> None:
    code, shown = on_terminal(expiring, LABEL, typed=typed)

    assert code == 1
    assert "Nothing was written." in shown
    assert expiring.migrations() == ["0001_initial.py"]


def test_no_input_never_asks(expiring: Project) -> None:
    code, shown = on_terminal(expiring, LABEL, "--no-input", typed="Now()\n")

    assert code == 1
    assert "has no default" in shown


def test_other_changes_can_be_left_for_later_on_a_terminal(expiring: Project) -> None:
    expiring.add_field("votes = models.IntegerField(null=True)")

    code, shown = on_terminal(expiring, LABEL, "--populate", "Now()", typed="y\n")

    assert code == 0, shown
    assert "polls: Add field votes to question" in shown
    assert "votes" not in expiring.read("polls/migrations/0002_question_expires_date.py")


# What it refuses


def test_without_a_value_the_error_is_the_line_to_type(expiring: Project) -> None:
    assert refused(expiring, LABEL) == (
        "polls.Question.expires_date has no default, so old rows need a value from elsewhere. Say how:\n"
        "    python manage.py add_required_field polls.Question.expires_date "
        "--populate 'F(\"pub_date\") + timedelta(days=30)'"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["polls.expires_date"],
            "'polls.expires_date' is not of the form app.Model.field, as in polls.Question.expires_date.",
        ),
        (
            ["polls.Question.expire_date"],
            "polls.Question has no field expire_date. Did you mean expires_date?",
        ),
        ([LABEL, "--populate", "F("], "--populate is not Python: '(' was never closed\n    F(\n     ^"),
        (
            [LABEL, "--populate", "polls.populate.x"],
            (
                "polls.populate.x cannot be imported: No module named 'polls.populate'\n"
                'If the text itself is the value for every row, write Value("polls.populate.x").'
            ),
        ),
        (
            [LABEL, "--populate", "1", "--populate", "2"],
            "--populate was given 2 times for 1 fields: give it once for all of them, or once for each.",
        ),
        ([LABEL, "--name", "no-name"], "--name must be a Python identifier, which 'no-name' is not."),
        (
            [LABEL, "--database", "archive"],
            "--database says where --migrate applies the migration: add --migrate.",
        ),
        (
            [LABEL, "--all-databases"],
            "--all-databases says where --migrate applies the migration: add --migrate.",
        ),
        (
            [LABEL, "--migrate", "--database", "archiv"],
            "DATABASES has no alias archiv. Did you mean archive?",
        ),
        (
            [LABEL, "--migrate", "--database", "archive", "--all-databases"],
            "--database names some databases and --all-databases means all: give one of them.",
        ),
        (
            [LABEL, "--populate", "Now()", "--keep-guard", "--phases", "3"],
            (
                "--keep-guard is for one file. With --phases 3 the guard stays until you migrate the third: leave "
                "--keep-guard out."
            ),
        ),
        (
            [LABEL, "--populate", "builtins.len", "--keep-guard"],
            (
                "--keep-guard: there can be no guard for polls.Question.expires_date, because len(row) is computed in "
                "Python, and a database cannot run that when old code inserts a row. Give --phases 3, to make the "
                "column required when no old code is left, or an expression as --populate."
            ),
        ),
        (
            [LABEL, "--populate", 'timedelta(days="x")'],
            (
                "The migration could not be loaded, so nothing was written: TypeError: unsupported type "
                'for timedelta days component: str\n    populate=timedelta(days="x"),'
            ),
        ),
        (
            [LABEL, "--migrate", "--dry-run"],
            "--dry-run writes nothing, so there is nothing for --migrate to apply.",
        ),
        (
            ["polls.Question.pub_date", "--populate", "Now()"],
            "polls.Question.pub_date is already in the migrations, as a required field, so there is nothing to write.",
        ),
        (
            ["polls.Question.id"],
            (
                "polls.Question.id (BigAutoField) cannot be added by safemigrate: a primary key cannot be "
                "filled "
                "afterwards. Change the key in a migration of your own.\nRun: python manage.py "
                "makemigrations polls"
            ),
        ),
    ],
)
def test_bad_input_is_refused_in_words_and_nothing_is_written(
    expiring: Project, arguments: list[str], message: str
) -> None:
    assert refused(expiring, *arguments) == message


@pytest.mark.parametrize("size", ["0", "-5", "many"])
def test_a_batch_has_one_row_or_more(expiring: Project, size: str) -> None:
    done = expiring.run(COMMAND, LABEL, "--populate", "Now()", f"--batch-size={size}")

    assert done.returncode == 2
    assert f"argument --batch-size: '{size}' is not a number of rows, 1 or more." in done.stderr


@pytest.mark.slow
def test_other_pending_changes_are_listed(expiring: Project) -> None:
    expiring.add_field("votes = models.IntegerField(null=True)")
    typed = [LABEL, "--populate", "Now()"]

    assert refused(expiring, *typed) == (
        "models.py has other changes that are not in the migrations yet:\n"
        "  polls: Add field votes to question\n"
        "They would be missing from this migration. Add --only-this-field to write this field now, and run "
        "makemigrations polls for them afterwards; or run it first, with the new field taken out of models.py for that."
    )
    expiring.must(COMMAND, *typed, "--only-this-field")
    assert "Add field votes to question" in expiring.must("makemigrations", "polls")
    assert "No changes detected" in expiring.must("makemigrations", "--check")


def test_a_field_that_looks_renamed_is_not_taken_for_new_without_a_word(project: Project) -> None:
    project.write("polls/models.py", MODELS.replace("pub_date =", "published ="))

    message = refused(project, "polls.Question.published", "--populate", "Now()")

    assert "  polls: Remove field pub_date from question\n" in message


def test_conflicting_migrations_are_named(expiring: Project) -> None:
    for name in ("left", "right"):
        expiring.write(
            f"polls/migrations/0002_{name}.py",
            """\
            from django.db import migrations


            class Migration(migrations.Migration):
                dependencies = [("polls", "0001_initial")]
            """,
        )

    assert refused(expiring, LABEL, "--populate", "Now()") == (
        "polls has conflicting migrations, each the last: 0002_left, 0002_right.\n"
        "Run: python manage.py makemigrations --merge polls"
    )


def test_after_makemigrations_the_file_to_delete_is_named(project: Project) -> None:
    project.add_field(EXPIRES.replace(")", ", auto_now_add=True)"))
    project.write(
        "polls/migrations/0002_first.py",
        """\
        from django.db import migrations, models


        class Migration(migrations.Migration):
            dependencies = [("polls", "0001_initial")]
            operations = [
                migrations.AddField("question", "expires_date", models.DateTimeField("expires at", auto_now_add=True))
            ]
        """,
    )

    assert refused(project, LABEL, "--populate", "Now()") == (
        "polls.Question.expires_date is already in the migrations, by polls.0002_first, as a required field, so there "
        "is nothing to write.\n"
        "If that one is applied nowhere yet, delete the file (or this operation in it), and type this again. Where it "
        "is applied, the old rows have a value already."
    )


def test_a_field_that_brings_another_along_names_both(expiring: Project) -> None:
    """As a history has a copy of each field of its model."""
    history = "\n\nclass HistoricalQuestion(models.Model):\n    pub_date = models.DateTimeField()\n"
    expiring.write("polls/models.py", MODELS + history)
    expiring.must("makemigrations", "-v0")
    expiring.must("migrate", "-v0")
    expiring.write("polls/models.py", f"{MODELS}    {EXPIRES}\n{history}    {EXPIRES}\n")

    message = refused(expiring, LABEL, "--populate", "Now()")

    both = f"{LABEL} polls.HistoricalQuestion.expires_date"
    assert message.endswith(f"Add both in one migration:\n    python manage.py add_required_field {both}")
    expiring.must(COMMAND, *both.split(), "--populate", "Now()", "--migrate")
    assert required(expiring, "default")
    assert "No changes detected" in expiring.must("makemigrations", "--check")


READS_ANOTHER_APP = """\
def born(apps):
    person = apps.get_model("people", "Person")
    return person.objects.order_by("pk").values("born")[:1]


def row(row):
    return row.pub_date


def beside(row, prepared):
    return row.pub_date


def prepare(apps, alias):
    return list(apps.get_model("people.Person").objects.using(alias))
"""
PERSON = "from django.db import models\n\n\nclass Person(models.Model):\n    born = models.DateTimeField()\n"


@pytest.mark.parametrize(
    ("populate", "seen"),
    [
        ("FromApps(polls.populate.born)", True),
        ("PerRow(polls.populate.beside, prepare=polls.populate.prepare)", True),
        ("polls.populate.row", False),
        ("Now()", False),
    ],
)
def test_it_depends_on_the_apps_that_the_populate_reads(project: Project, populate: str, seen: bool) -> None:
    project.write("people/__init__.py", "")
    project.write("people/models.py", PERSON)
    project.write("people/migrations/__init__.py", "")
    project.append("settings.py", 'INSTALLED_APPS += ["people"]')
    project.write("polls/populate.py", READS_ANOTHER_APP)
    project.must("makemigrations", "-v0", "people")
    project.add_field()
    project.must(COMMAND, LABEL, "--populate", populate)

    text = project.read("polls/migrations/0002_question_expires_date.py")
    assert ('("people", "0001_initial"),' in text) is seen
    for alias in ("default", "archive"):
        project.path(f"{alias}.sqlite3").unlink()
    project.must("migrate", "-v0")


def test_a_second_call_without_migrate_says_what_to_run(expiring: Project) -> None:
    typed = [LABEL, "--populate", "Now()"]
    expiring.must(COMMAND, *typed)

    assert refused(expiring, *typed) == (
        "polls.Question.expires_date is already in the migrations, by "
        "polls.0002_question_expires_date. There is "
        "nothing to write.\nRun: python manage.py migrate polls"
    )


def test_a_field_that_has_changed_since_is_not_migrated_silently(expiring: Project) -> None:
    expiring.must(COMMAND, LABEL, "--populate", "Now()")
    expiring.write("polls/models.py", expiring.read("polls/models.py").replace("expires at", "ends at"))

    assert refused(expiring, LABEL, "--migrate") == (
        "polls.Question.expires_date has changed in models.py since "
        "polls.0002_question_expires_date was written "
        "(Alter field expires_date on question). Remove that migration, if it was applied nowhere, or run: "
        "python manage.py makemigrations polls"
    )


@pytest.mark.parametrize(
    ("model", "label", "message"),
    [
        (
            (
                "class Loose(models.Model):\n    at = models.DateTimeField()\n\n"
                "    class Meta:\n        managed = False\n"
            ),
            "polls.Loose.at",
            (
                "polls.Loose is unmanaged (managed = False): migrations do not touch its table, so the "
                "column has to "
                "be added where the table is made."
            ),
        ),
        (
            "class Seen(Question):\n    class Meta:\n        proxy = True\n",
            "polls.Seen.expires_date",
            "polls.Seen is a proxy without a table: name polls.Question.expires_date instead.",
        ),
        (
            "class Special(Question):\n    extra = models.IntegerField(default=0)\n",
            "polls.Special.expires_date",
            (
                "polls.Special.expires_date is inherited, and its column is in the table of "
                "polls.Question: name "
                "polls.Question.expires_date instead."
            ),
        ),
        (
            (
                "class Old(models.Model):\n    at = models.DateTimeField()\n\n"
                '    class Meta:\n        swappable = "OLD_MODEL"\n'
            ),
            "polls.Old.at",
            "polls.Old is swapped for polls.Question, so it has no table: name polls.Question.at instead.",
        ),
        (
            "class New(models.Model):\n    at = models.DateTimeField()\n",
            "polls.New.at",
            (
                "polls.New is not in the migrations of polls yet, so its table has no old rows.\n"
                "Run: python manage.py makemigrations polls"
            ),
        ),
        (
            (
                "class Sum(models.Model):\n    one = models.IntegerField()\n    two = "
                "models.GeneratedField(\n"
                '        expression=models.F("one") * 2, output_field=models.IntegerField(), '
                "db_persist=True\n    )\n"
            ),
            "polls.Sum.two",
            (
                "polls.Sum.two (GeneratedField) cannot be added by safemigrate: the database computes a "
                "generated "
                "field itself. Use migrations.AddField.\nRun: python manage.py makemigrations polls"
            ),
        ),
        (
            "class Tag(models.Model):\n    questions = models.ManyToManyField(Question)\n",
            "polls.Tag.questions",
            (
                "polls.Tag.questions (ManyToManyField) cannot be added by safemigrate: a many-to-many "
                "field is a "
                "table of its own, not a column. Use migrations.AddField.\nRun: python manage.py "
                "makemigrations polls"
            ),
        ),
    ],
)
def test_models_and_fields_without_a_column_of_their_own_are_refused(
    expiring: Project, model: str, label: str, message: str
) -> None:
    expiring.append("settings.py", 'OLD_MODEL = "polls.Question"')
    expiring.append("polls/models.py", f"\n\n{model}")

    assert refused(expiring, label, "--populate", "Now()") == message


def test_a_foreign_key_to_a_model_without_migrations_waits(project: Project) -> None:
    project.append("polls/models.py", "\n\nclass Topic(models.Model):\n    pass\n")
    models = project.read("polls/models.py")
    line = '    topic = models.ForeignKey("Topic", on_delete=models.CASCADE)\n'
    project.write("polls/models.py", models.replace("\n\n\nclass Topic", f"\n{line}\n\nclass Topic"))

    assert refused(project, "polls.Question.topic", "--populate", "1", "--only-this-field") == (
        "polls.Question.topic points to polls.Topic, which is not in the migrations yet.\n"
        "Run: python manage.py makemigrations polls"
    )


def test_a_missing_migrations_package_is_named_with_the_cure(expiring: Project) -> None:
    for path in sorted(expiring.path("polls/migrations").rglob("*")):
        path.unlink()
    expiring.path("polls/migrations").rmdir()

    done = expiring.run(COMMAND, LABEL, "--populate", "Now()")

    assert done.returncode == 1
    assert done.stderr == (
        "CommandError: polls has no package for migrations, polls.migrations.\n"
        "Run: mkdir -p polls/migrations && touch polls/migrations/__init__.py\n"
        "Then, without the new field in models.py: python manage.py makemigrations polls\n"
        "See https://github.com/safemigrate/safemigrate/blob/main/docs/reference/errors.md#notwritable\n"
    )
    assert not expiring.path("polls/migrations").exists()


def test_an_app_without_any_migration_has_no_old_rows(expiring: Project) -> None:
    expiring.path("polls/migrations/0001_initial.py").unlink()

    assert refused(expiring, LABEL, "--populate", "Now()") == (
        "polls has no migrations yet, so there is no table with old rows.\n"
        "Run: python manage.py makemigrations polls"
    )


def test_migrations_that_are_turned_off_are_said_to_be(expiring: Project) -> None:
    expiring.append("settings.py", 'MIGRATION_MODULES = {"polls": None}')

    assert refused(expiring, LABEL, "--populate", "Now()") == (
        "Migrations of polls are turned off by MIGRATION_MODULES in the settings."
    )


def test_a_read_only_folder_is_seen_before_anything_is_written(expiring: Project) -> None:
    folder = expiring.path("polls/migrations")
    folder.chmod(0o555)
    # Root may write everywhere, unless that right is given up.
    prefix = ("setpriv", "--bounding-set=-dac_override") if os.geteuid() == 0 else ()
    try:
        message = refused(expiring, LABEL, "--populate", "Now()", prefix=prefix)
    finally:
        folder.chmod(0o755)

    assert message == "polls/migrations is read-only for this user: nothing can be written there."


# What could only fail in `migrate` is refused while there is no file


SPECIAL = """

class Special(Question):
    pass
"""
SLUG = "slug = models.CharField(max_length=50)"
POPULATES_PY = "def title(question):\n    return 'a title'\n"


@pytest.mark.parametrize(
    ("label", "populate", "said"),
    [
        ("polls.Special.slug", 'F("question_text")', 'FromRelated("question_ptr__question_text")'),
        ("polls.Special.slug", 'Upper("question_text")', "Joined field references are not permitted"),
        ("polls.Question.expires_date", "Window(Lag('pub_date'))", "Window expressions are not allowed"),
        ("polls.Special.slug", 'PerRow(polls.populate.title, unique=Suffix("-"))', "is not unique=True"),
        ("polls.Special.slug", 'F("no_such_field")', "no_such_field"),
        ("polls.Special.slug", '"a text that is longer than fifty characters, all in all"', "50"),
    ],
)
def test_a_file_that_could_only_fail_is_not_written(
    project: Project, label: str, populate: str, said: str
) -> None:
    project.write("polls/populate.py", POPULATES_PY)
    project.append("polls/models.py", SPECIAL)
    project.must("makemigrations", "-v0")
    of_special = "Special" in label
    project.write("polls/models.py", MODELS + ("" if of_special else f"    {EXPIRES}\n") + SPECIAL)
    if of_special:
        project.add_field(SLUG)
    error = refused(project, label, "--populate", populate)
    assert said in error
    assert "Traceback" not in error
    assert len(error.splitlines()) <= 4
