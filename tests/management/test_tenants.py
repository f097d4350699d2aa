"""A project whose tenants have a schema each (django-tenants); the runs are kept in each of them, or in one for all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from tests.support.projects import Project
from tools.servers import PostgreSQL

pytestmark = pytest.mark.slow

LABEL = "polls.Question.expires_date"
ROWS = {"one": 30, "two": 20, "three": 0}

SETTINGS = """\
SECRET_KEY = "only-for-tests"
DATABASES = {{
    "default": {{
        "ENGINE": "django_tenants.postgresql_backend",
        "NAME": "{name}", "USER": "{user}", "HOST": "{host}", "PORT": {port},
    }}
}}
DATABASE_ROUTERS = ["django_tenants.routers.TenantSyncRouter"]
SHARED_APPS = ["django_tenants", "tenants", "django.contrib.contenttypes"{shared}]
TENANT_APPS = ["polls"{tenant}]
INSTALLED_APPS = SHARED_APPS + TENANT_APPS
TENANT_MODEL, TENANT_DOMAIN_MODEL = "tenants.Tenant", "tenants.Domain"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
"""

MODELS = """\
from django_tenants.models import DomainMixin, TenantMixin


class Tenant(TenantMixin):
    pass


class Domain(DomainMixin):
    pass
"""

#: Each question gets a text of its own: a function, so that its values are written by a thread.
BACKFILLS = """\
from django.db.models import Q

from safemigrate.backfills import Backfill


class Shout(Backfill):
    \"\"\"Questions in capital letters.\"\"\"

    model = "polls.Question"
    where = ~Q(question_text__startswith="Q")
    fields = ["question_text"]

    def row(self, instance):
        return instance.question_text.upper()
"""


class Tenants:
    """The project, on a database of its own, before its questions have to expire."""

    def __init__(self, folder: Path, server: PostgreSQL, placement: str) -> None:
        self.connection = psycopg2.connect(server.url)
        self.connection.autocommit = True
        name = f"tenants_{placement}"
        self.query(f"CREATE DATABASE {name}", rows=False)
        self.connection.close()
        self.connection = psycopg2.connect(dbname=name, user=server.user, host=server.host, port=server.port)
        self.connection.autocommit = True
        self.project = Project(folder)
        places = {place: ', "safemigrate"' if place == placement else "" for place in ("shared", "tenant")}
        where = {"name": name, "user": server.user, "host": server.host, "port": server.port}
        self.project.write("settings.py", SETTINGS.format(**where, **places))
        self.project.write("tenants/__init__.py", "")
        self.project.write("tenants/models.py", MODELS)
        self.project.write("tenants/migrations/__init__.py", "")
        self.project.write("polls/backfills.py", BACKFILLS)
        self.project.must("makemigrations", "-v0")
        self.project.must("migrate_schemas", "--shared", "-v0")
        make = "from tenants.models import Tenant\nfor name in {}: Tenant(schema_name=name).save(verbosity=0)"
        self.project.must("shell", "-v0", "-c", make.format(["public", *ROWS]))
        for schema, rows in ROWS.items():
            self.query(
                f"INSERT INTO {schema}.polls_question (question_text, pub_date) "
                f"SELECT 'q' || n, now() - n * interval '1 day' FROM generate_series(1, {rows}) AS n",
                rows=False,
            )

    def query(self, sql: str, *, rows: bool = True) -> Any:
        with self.connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall() if rows else None

    def write_migration(self) -> None:
        self.project.add_field()
        self.project.must("add_required_field", LABEL, "--populate", "F('pub_date')")

    def assert_filled(self) -> None:
        for schema, rows in ROWS.items():
            right = f"SELECT count(*) FROM {schema}.polls_question WHERE expires_date = pub_date"
            assert self.query(right) == [(rows,)]
            required = (
                "SELECT is_nullable FROM information_schema.columns "
                f"WHERE table_schema = '{schema}' AND column_name = 'expires_date'"
            )
            assert self.query(required) == [("NO",)]

    def runs(self, placement: str) -> dict[str, tuple[str, int]]:
        """Return the state and the rows of each schema's newest run."""
        schemas = ["public"] if placement == "shared" else [*ROWS]
        found = [
            row
            for schema in schemas
            for row in self.query(
                f"SELECT schema, status, rows_done FROM {schema}.safemigrate_backfillrun ORDER BY id"
            )
        ]
        return {schema: (status, rows) for schema, status, rows in found}


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQL]:
    with PostgreSQL() as server:
        yield server


@pytest.fixture(params=["shared", "tenant"])
def placement(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tenants(tmp_path: Path, server: PostgreSQL, placement: str) -> Iterator[Tenants]:
    tenants = Tenants(tmp_path, server, placement)
    yield tenants
    tenants.connection.close()
    with closing(psycopg2.connect(server.url)) as connection:
        connection.autocommit = True
        connection.cursor().execute(f"DROP DATABASE tenants_{placement} WITH (FORCE)")


@pytest.mark.parametrize("executor", ["standard", "multiprocessing"])
def test_each_tenant_is_filled_and_has_its_run(tenants: Tenants, placement: str, executor: str) -> None:
    tenants.write_migration()
    tenants.project.must("migrate_schemas", "--executor", executor)
    tenants.assert_filled()
    assert tenants.runs(placement) == {"one": ("succeeded", 30), "two": ("succeeded", 20)}
    if placement == "shared":
        assert "No runs are recorded yet." in tenants.project.must("backfill", "list", "--schemas", "public")
    listed = tenants.project.must("backfill", "list", "--schemas", "one")
    assert "default, schema one" in listed
    assert "schema two" not in listed
    verified = tenants.project.must("backfill", "verify", LABEL, "--schemas", "all")
    assert "Schema two\npolls.Question.expires_date on default: 0 rows without a value; of 20" in verified


def test_a_plan_is_of_one_schema(tenants: Tenants) -> None:
    tenants.write_migration()
    refused = tenants.project.run("add_required_field", LABEL, "--plan")
    assert refused.returncode == 1
    assert (
        "The connection is in the schema public. With django-tenants, name that of a tenant" in refused.stderr
    )
    planned = tenants.project.must("tenant_command", "add_required_field", LABEL, "--plan", "--schema=one")
    assert "30 rows" in planned


def test_a_backfill_is_run_in_each_schema_that_is_named(tenants: Tenants, placement: str) -> None:
    refused = tenants.project.run("backfill", "run", "polls.Shout", "--schemas", "one,tw")
    assert refused.returncode == 1
    assert "No tenant has the schema tw. Did you mean two?" in refused.stderr
    done = tenants.project.must(
        "backfill", "run", "polls.Shout", "--schemas", "all", "--batch-size", "4", "--workers", "2"
    )
    assert done.count("every row is done") == len(ROWS)
    assert tenants.runs(placement) == {"one": ("succeeded", 30), "two": ("succeeded", 20)}
    for schema, rows in ROWS.items():
        shouted = f"SELECT count(*) FROM {schema}.polls_question WHERE question_text LIKE 'Q%'"
        assert tenants.query(shouted) == [(rows,)]


def test_what_failed_in_one_schema_is_shown_and_given_up_there_alone(
    tenants: Tenants, placement: str
) -> None:
    tenants.project.add_field()
    tenants.project.must("add_required_field", LABEL, "--populate", "NullIf(F('pub_date'), F('pub_date'))")
    for schema in ("one", "two"):
        failed = tenants.project.run("migrate_schemas", f"--schema={schema}")
        assert failed.returncode == 1
        assert f"{ROWS[schema]} rows of polls.Question.expires_date on default got no value" in failed.stderr
    assert {state for state, _ in tenants.runs(placement).values()} == {"failed"}
    if placement == "shared":
        key = tenants.query("SELECT id FROM public.safemigrate_backfillrun WHERE schema = 'two'")[0][0]
        listed = tenants.project.must("backfill", "show", str(key), "--bad-rows").splitlines()
        assert len(listed) == 1 + ROWS["two"]
    abandon = ("add_required_field", LABEL, "--abandon", "--no-input", "--schema=one")
    tenants.project.must("tenant_command", *abandon)
    left = "SELECT table_schema FROM information_schema.columns WHERE column_name = 'expires_date'"
    assert tenants.query(left) == [("two",)]
    assert {schema: state for schema, (state, _) in tenants.runs(placement).items()} == {
        "one": "cancelled",
        "two": "failed",
    }


@pytest.mark.parametrize("placement", ["shared"], indirect=True)
def test_a_worker_of_a_queue_fills_the_schema_of_the_run(tenants: Tenants, placement: str) -> None:
    tenants.project.append(
        "settings.py",
        'TASKS = {"default": {"BACKEND": "django.tasks.backends.dummy.DummyBackend", "QUEUES": ["safemigrate"]}}',
    )
    # On Django 5.2 it is the package that has them.
    tenants.project.append(
        "settings.py",
        "import django\n"
        'if django.VERSION < (6,): TASKS["default"]["BACKEND"] = "django_tasks.backends.dummy.DummyBackend"',
    )
    for schema in ("two", "one"):
        tenants.project.must("backfill", "run", "polls.Shout", "--schemas", schema, "--executor", "tasks")
    assert tenants.runs(placement) == {"one": ("queued", 0), "two": ("queued", 0)}
    work = "from safemigrate.models import BackfillRun\nfrom safemigrate.runs.worker import work\n"
    tenants.project.must("shell", "-v0", "-c", f"{work}work(BackfillRun.objects.get(schema='two').pk)")
    assert tenants.runs(placement) == {"one": ("queued", 0), "two": ("succeeded", 20)}
    shouted = "SELECT count(*) FROM {}.polls_question WHERE question_text LIKE 'Q%'"
    assert tenants.query(shouted.format("two")) == [(20,)]
    assert tenants.query(shouted.format("one")) == [(0,)]


def test_without_tenants_there_are_no_schemas(tmp_path: Path) -> None:
    project = Project(tmp_path).made()
    refused = project.run("backfill", "list", "--schemas", "all")
    assert refused.returncode == 1
    assert "--schemas names tenants of django-tenants, and this project has none" in refused.stderr
