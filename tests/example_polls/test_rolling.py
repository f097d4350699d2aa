"""A rolling deploy by three files: which code works on which schema, with both codes and real databases."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_django import DjangoDbBlocker

from benchmarks.scenarios import three_files
from benchmarks.sites import Site, database
from tests.conftest import missing

pytestmark = [pytest.mark.slow, pytest.mark.matrix]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The three migrations as the command writes them."""
    folder = tmp_path_factory.mktemp("files")
    site = Site(folder, f"sqlite:///{folder}/site.sqlite3")
    three_files(site)
    return sorted((site.new / "polls/migrations").glob("000[345]_*.py"))


def server(kind: str) -> str:
    return os.environ.get(f"SAFEMIGRATE_TEST_{kind.upper()}") or pytest.skip(missing(kind))


class TestOwnTests:
    """`manage.py test` makes its database by the migrations that it finds: they are those of one moment."""

    @pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
    def site(self, request: pytest.FixtureRequest, tmp_path: Path) -> Site:
        if request.param == "sqlite":
            return Site(tmp_path, f"sqlite:///{tmp_path}/site.sqlite3")
        # Several workers share a server.
        return Site(tmp_path, server(request.param).rpartition("/")[0] + f"/rolling_{os.getpid()}")

    @staticmethod
    def run(site: Site, code: Path, files: list[Path]) -> subprocess.CompletedProcess[str]:
        for file in files:
            shutil.copy(file, code / "polls/migrations")
        return site.manage(code, "test", "polls", "--no-input")

    @pytest.mark.parametrize("done", [0, 1, 2])
    def test_old_code_passes_until_the_third_file(self, site: Site, files: list[Path], done: int) -> None:
        result = self.run(site, site.old, files[:done])
        assert result.returncode == 0, result.stdout + result.stderr
        assert "Ran 8 tests" in result.stderr

    @pytest.mark.parametrize("done", [1, 2, 3])
    def test_new_code_passes_from_the_first_file_on(self, site: Site, files: list[Path], done: int) -> None:
        result = self.run(site, site.new, files[:done])
        assert result.returncode == 0, result.stdout + result.stderr
        assert "Ran 11 tests" in result.stderr

    def test_after_the_third_file_the_inserts_of_old_code_fail(self, site: Site, files: list[Path]) -> None:
        result = self.run(site, site.old, files)
        assert result.returncode == 1
        assert "IntegrityError" in result.stderr or "doesn't have a default value" in result.stderr
        assert "expires_date" in result.stderr

    def test_before_the_first_file_new_code_fails(self, site: Site, files: list[Path]) -> None:
        result = self.run(site, site.new, [])
        assert result.returncode == 1
        assert "expires_date" in result.stderr


ASK = """
from datetime import timedelta
from django.utils import timezone
question = Question(question_text="Who asks?", pub_date=timezone.now() - timedelta(days=1))
question.save()
question.choice_set.create(choice_text="I do")
print(question.pk)
"""
READ = """
from django.test import Client
client = Client(headers={{"host": "localhost"}})
question = Question.objects.get(pk={key})
print((question.expires_date - question.pub_date).days)
print(*(client.get(path).status_code for path in ("/polls/", "/polls/{key}/", "/polls/{key}/results/")))
"""
VOTE = """
from django.test import Client
client = Client(headers={{"host": "localhost"}})
choice = Choice.objects.get(question={key})
print(client.post("/polls/{key}/vote/", {{"choice": choice.pk}}).status_code)
"""


class TestSideBySide:
    """Both codes on one full table, in the middle of the deploy."""

    @pytest.fixture(params=["postgresql", "postgresql_old", "mariadb"])
    def site(
        self, request: pytest.FixtureRequest, tmp_path: Path, django_db_blocker: DjangoDbBlocker
    ) -> Iterator[Site]:
        with (
            django_db_blocker.unblock(),
            database(server(request.param), f"side_by_side_{os.getpid()}") as url,
        ):
            site = Site(tmp_path, url)
            site.fill(100)
            yield site

    @staticmethod
    def shell(site: Site, code: Path, script: str) -> list[str]:
        imports = "from polls.models import Choice, Question\n"
        return site.must(code, "shell", "-v", "0", "-c", imports + script).splitlines()

    @pytest.mark.parametrize("done", [1, 2])
    def test_each_works_with_what_the_other_writes(self, site: Site, files: list[Path], done: int) -> None:
        for file in files[:done]:
            shutil.copy(file, site.new / "polls/migrations")
        site.must(site.new, "migrate", "-v", "0")
        (key,) = self.shell(site, site.old, ASK)
        assert self.shell(site, site.new, READ.format(key=key)) == ["30", "200 200 200"]
        assert self.shell(site, site.new, VOTE.format(key=key)) == ["302"]
        assert self.shell(site, site.old, VOTE.format(key=key)) == ["302"]
        assert site.wrong_rows() == (100 if done == 1 else 0)
