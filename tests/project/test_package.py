"""The package as a stranger gets it: what is in it, what the index shows of it, and its first five minutes."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import django
import pytest

import safemigrate
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source and the wheel, built as a release builds them."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT))
    return folder


def run(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def wheel_of(dist: Path) -> Path:
    (found,) = dist.glob("*.whl")
    return found


def test_it_is_what_the_index_takes(dist: Path) -> None:
    run(sys.executable, "-m", "twine", "check", "--strict", *map(str, dist.iterdir()))
    assert {path.name for path in dist.iterdir()} == {
        f"safemigrate-{safemigrate.__version__}-py3-none-any.whl",
        f"safemigrate-{safemigrate.__version__}.tar.gz",
    }


def test_the_wheel_has_all_that_runs_and_nothing_else(dist: Path) -> None:
    with zipfile.ZipFile(wheel_of(dist)) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"safemigrate", f"safemigrate-{safemigrate.__version__}.dist-info"}
    tracked = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "safemigrate").split()
    assert {name for name in names if name.startswith("safemigrate/")} == set(tracked)


def test_what_the_index_shows_leads_somewhere_and_asks_for_little(dist: Path) -> None:
    with zipfile.ZipFile(wheel_of(dist)) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("METADATA")]
        fields, _, text = archive.read(name).decode().partition("\n\n")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 15
    assert [link for link in links if not link.startswith("https://")] == []
    extras = set(re.findall(r"^Provides-Extra: (\S+)$", fields, re.MULTILINE))
    assert extras == {"postgresql", "psycopg", "mysql", "mariadb", "celery", "rq", "tasks"}
    assert len(re.findall(r"^Project-URL: ", fields, re.MULTILINE)) == 4


def test_the_first_five_minutes(dist: Path) -> None:
    version = ".".join(map(str, django.VERSION[:2]))
    said = run(sys.executable, "tools/first_minutes.py", str(wheel_of(dist)), f"django=={version}.*")
    assert said.endswith("The first five minutes went well.\n")


def test_the_workflows_are_safe_to_run() -> None:
    run(str(BIN / "zizmor"), "--offline", "--quiet", ".github/workflows")
    for path in sorted((ROOT / ".github/workflows").glob("*.yml")):
        run(str(BIN / "check-jsonschema"), "--builtin-schema", "vendor.github-workflows", str(path))
    for path in sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml")):
        run(str(BIN / "check-jsonschema"), "--builtin-schema", "vendor.github-issue-forms", str(path))
