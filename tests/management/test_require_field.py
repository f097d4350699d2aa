"""add_required_field where the migrations have the field as null=True."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.management.test_add_required_field import COMMAND, LABEL, THIRTY_DAYS, body, refused, required
from tests.support.projects import EXPIRES, MODELS, Project

NULL_EXPIRES = EXPIRES.replace(")", ", null=True)")
REQUIRE = """\
from datetime import timedelta

from django.db import migrations, models
from django.db.models import F
from safemigrate.operations import RequireField


class Migration(migrations.Migration):
    atomic = False

    dependencies = [
        ("polls", "0002_question_expires_date"),
    ]

    operations = [
        RequireField(
            model_name="question",
            name="expires_date",
            field=models.DateTimeField(verbose_name="expires at"),
            populate=F("pub_date") + timedelta(days=30),
        ),
    ]
"""


@pytest.fixture
def nullable(tmp_path: Path) -> Project:
    """The field is null=True in the migrations and in the table, and required in models.py."""
    project = Project(tmp_path).made()
    project.add_field(NULL_EXPIRES)
    project.must("makemigrations", "-v0")
    for alias in ("default", "archive"):
        project.must("migrate", "-v0", "--database", alias)
    project.write("polls/models.py", MODELS)
    project.add_field(EXPIRES)
    return project


def write_null(project: Project) -> None:
    """What old code does: an insert, and a save of an instance that it loaded before."""
    with closing(sqlite3.connect(project.path("default.sqlite3"))) as connection, connection:
        connection.execute(
            "INSERT INTO polls_question (question_text, pub_date, expires_date) VALUES ('Old?', '2026-01-01', NULL)"
        )
        connection.execute("UPDATE polls_question SET expires_date = NULL WHERE id = 1")


def test_it_writes_one_migration_that_makes_the_field_required(nullable: Project) -> None:
    nullable.seed("default", 5)
    nullable.sql("default", "UPDATE polls_question SET expires_date = '2030-01-01 00:00:00' WHERE id = 3")

    out = nullable.must(COMMAND, LABEL, "--populate", THIRTY_DAYS)

    assert nullable.migrations()[-1] == "0003_question_expires_date_required.py"
    assert body(nullable.read("polls/migrations/0003_question_expires_date_required.py")) == REQUIRE
    assert out == (
        "Wrote polls/migrations/0003_question_expires_date_required.py\n"
        "Next, on each database:\n"
        "    python manage.py migrate polls\n"
        "Old code knows polls.Question.expires_date as nullable and may still write NULL, also by saving what it "
        "loaded before:\na write guard replaces it, where the database can. Once the column is required, such writes "
        "fail. If old code\nruns on after that, remove the file, and write it again with --keep-guard (not for SQLite, "
        "which looks for NULL\nbefore a trigger runs), or with --phases 3.\n"
    )
    nullable.must("migrate", "polls")
    assert required(nullable, "default")
    assert nullable.sql(
        "default", "SELECT id FROM polls_question WHERE expires_date = '2030-01-01 00:00:00'"
    ) == [(3,)]
    assert "No changes detected" in nullable.must("makemigrations", "--check", "--dry-run")
    assert (
        nullable.must("check", "--database", "default") == "System check identified no issues (0 silenced).\n"
    )
    assert "nothing to write" in refused(nullable, LABEL, "--populate", THIRTY_DAYS)
    nullable.must("migrate", "polls", "0002")
    assert not required(nullable, "default")
    assert nullable.sql("default", "SELECT count(*) FROM polls_question WHERE expires_date IS NULL") == [(0,)]


def test_in_three_files_old_code_writes_null_until_the_third(nullable: Project) -> None:
    nullable.seed("default", 3)
    out = nullable.must(COMMAND, LABEL, "--populate", "Now()", "--phases", "3")
    names = ["0003_question_expires_date_required_guard", "0004_question_expires_date_required_fill"]
    names.append("0005_question_expires_date_required_require")
    assert [name.removesuffix(".py") for name in nullable.migrations()[2:]] == names
    assert "Next, in three deployments:\n" in out
    first = nullable.read(f"polls/migrations/{names[0]}.py")
    assert first.startswith(
        "# Deploy 1 of 3: migrate this before the new code runs anywhere.\n"
        "# Old and new code both work: the database replaces NULL that old code writes.\n"
    )
    assert "GuardWrites(" in first
    assert "AddNullableField" not in first
    assert "# From then on a write of NULL fails.\n" in nullable.read(f"polls/migrations/{names[2]}.py")

    null = "SELECT count(*) FROM polls_question WHERE expires_date IS NULL"
    for name in names[:2]:
        nullable.must("migrate", "polls", name)
        write_null(nullable)
        assert nullable.sql("default", null) == [(2 if name == names[0] else 0,)]
    nullable.must("migrate", "polls")
    assert required(nullable, "default")
    with pytest.raises(sqlite3.IntegrityError):
        write_null(nullable)
    assert nullable.sql("default", "SELECT name FROM sqlite_master WHERE type = 'trigger'") == []


def test_where_no_guard_can_be_two_files_are_enough(nullable: Project) -> None:
    nullable.seed("default", 3)
    nullable.write("polls/populate.py", "def expires_date(question):\n    return question.pub_date\n")
    out = nullable.must(COMMAND, LABEL, "--populate", "polls.populate.expires_date", "--phases", "3")
    fill, require = nullable.migrations()[2:]
    assert fill == "0003_question_expires_date_required_fill.py"
    assert nullable.read(f"polls/migrations/{fill}").startswith(
        "# Deploy 1 of 2: migrate this at any time; run again, it does no harm.\n"
    )
    assert nullable.read(f"polls/migrations/{require}").startswith("# Deploy 2 of 2: ")
    assert "Next, in 2 deployments:" in out
    assert "Old code may write NULL into polls.Question.expires_date until the last file" in out
    nullable.must("migrate", "polls", "0003")
    write_null(nullable)
    nullable.must("migrate", "polls")
    assert required(nullable, "default")


def test_a_new_and_a_nullable_field_go_together(nullable: Project) -> None:
    nullable.add_field("votes = models.IntegerField()")
    nullable.seed("default", 3)
    nullable.must(
        COMMAND, LABEL, "polls.Question.votes", "--populate", "Now()", "--populate", "0", "--migrate", "-v0"
    )
    assert len(nullable.migrations()) == 3
    text = nullable.read(f"polls/migrations/{nullable.migrations()[-1]}")
    assert "RequireField(" in text
    assert "AddRequiredField(" in text
    assert required(nullable, "default")
    assert required(nullable, "default", "votes")


def test_the_plan_counts_the_nulls_and_names_what_a_stale_save_does(nullable: Project) -> None:
    nullable.seed("default", 7)
    nullable.sql("default", "UPDATE polls_question SET expires_date = pub_date WHERE id < 4")
    out = nullable.run(
        COMMAND, LABEL, "--populate", "Now()", "--plan", "--format", "json", "--database", "default"
    )
    (plan,) = json.loads(out.stdout)["plans"]
    assert (plan["rows"], plan["nulls"]) == (7, 4)
    texts = " ".join(risk["text"] for risk in plan["risks"])
    assert "a save() of an instance that was loaded earlier may write NULL back" in texts
    assert "Code that writes NULL into the field fails once it is required" in texts
    assert nullable.migrations()[-1] == "0002_question_expires_date.py"


def test_another_change_of_the_column_comes_first(nullable: Project) -> None:
    nullable.write("polls/models.py", MODELS)
    nullable.add_field('expires_date = models.DateField("expires at")')
    error = refused(nullable, LABEL, "--populate", "Now()")
    assert error == (
        "polls.Question.expires_date is null=True in the migrations, and models.py changes more of its column than "
        "that: type. Make that change first: put null=True back in models.py, run\n"
        "    python manage.py makemigrations polls\n"
        "then take null=True out, and type this again."
    )


def test_what_is_only_python_s_may_change_with_it(nullable: Project) -> None:
    nullable.write("polls/models.py", MODELS)
    nullable.add_field(
        'expires_date = models.DateTimeField("ends", blank=True, help_text="When?", db_index=True)'
    )
    nullable.seed("default", 3)
    nullable.must(COMMAND, LABEL, "--populate", "Now()", "--migrate", "-v0")
    assert required(nullable, "default")
    assert "No changes detected" in nullable.must("makemigrations", "--check", "--dry-run")


def test_after_makemigrations_has_made_it_required_the_file_is_named(nullable: Project) -> None:
    nullable.write(
        "polls/migrations/0003_alter.py",
        """\
        from django.db import migrations, models


        class Migration(migrations.Migration):
            dependencies = [("polls", "0002_question_expires_date")]
            operations = [
                migrations.AlterField("question", "expires_date", models.DateTimeField("expires at"))
            ]
        """,
    )
    assert refused(nullable, LABEL, "--populate", "Now()").startswith(
        "polls.Question.expires_date is already in the migrations, by polls.0003_alter, as a required field, so there "
        "is nothing to write.\nIf that one is applied nowhere yet, delete the file"
    )


def test_a_field_of_ours_that_was_made_nullable_again_is_made_required_anew(nullable: Project) -> None:
    nullable.must(COMMAND, LABEL, "--populate", "Now()", "--migrate", "-v0")
    nullable.write("polls/models.py", MODELS)
    nullable.add_field(NULL_EXPIRES)
    nullable.must("makemigrations", "-v0")
    nullable.must("migrate", "-v0")
    nullable.write("polls/models.py", MODELS)
    nullable.add_field(EXPIRES)
    nullable.must(COMMAND, LABEL, "--populate", "Now()", "--migrate", "-v0", "--name", "again")
    assert nullable.migrations()[-1] == "0005_again.py"
    assert required(nullable, "default")


def test_it_is_found_by_backfill_run(nullable: Project) -> None:
    nullable.seed("default", 5)
    nullable.must(COMMAND, LABEL, "--populate", THIRTY_DAYS)
    nullable.must("migrate", "safemigrate", "-v0")
    nullable.must("backfill", "run", LABEL)
    assert nullable.sql("default", "SELECT count(*) FROM polls_question WHERE expires_date IS NULL") == [(0,)]
    assert not required(nullable, "default")
    nullable.must("migrate", "-v0")
    assert required(nullable, "default")
