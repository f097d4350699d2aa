"""The first five minutes of a stranger: the wheel in a new environment, a new project, one more required field.

    python tools/first_minutes.py dist/safemigrate-0.1.0-py3-none-any.whl "django==6.1.*"

Imports nothing of this checkout. Prints each command, and ends with 1 at the first that fails, or has another effect
than the README says.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

ROWS = 1_000
MODELS = """
from django.db import models


class Customer(models.Model):
    name = models.CharField(max_length=50)
    joined = models.DateTimeField()
    {field}
"""
FIELD = "expires = models.DateTimeField()"
FILL = f"""
from datetime import datetime, timedelta, timezone
from shop.models import Customer
start = datetime(2026, 1, 1, tzinfo=timezone.utc)
Customer.objects.bulk_create(
    Customer(name=f"customer {{n}}", joined=start + timedelta(hours=n)) for n in range({ROWS})
)
"""
LOOK = f"""
from datetime import timedelta
from django.db.models import F
from shop.models import Customer
right = Customer.objects.filter(expires=F("joined") + timedelta(days=365)).count()
assert right == Customer.objects.count() == {ROWS}, right
"""


class Project:
    """A project in a folder of its own, with the packages that were installed for it and no others."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.site = folder, folder / "site"
        self.site.mkdir()
        venv.create(folder / "venv", with_pip=True)
        programs = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
        self.python = programs / "python"
        kept = ("PATH", "HOME", "SYSTEMROOT", "TMPDIR", "SSL_CERT_FILE")
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if name in kept or name.startswith(("PIP_", "UV_"))
        }

    def run(self, *arguments: str, fails: bool = False) -> str:
        """Run the environment's Python with these arguments; return what it printed."""
        print(f"$ python {shlex.join(arguments)}".replace("\\n", " "), flush=True)
        done = subprocess.run(
            [self.python, *arguments],
            cwd=self.site,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if bool(done.returncode) is not fails:
            raise SystemExit(f"{done.stdout}{done.stderr}\nended with {done.returncode}")
        return done.stdout + done.stderr

    def manage(self, *arguments: str, fails: bool = False) -> str:
        return self.run("manage.py", *arguments, fails=fails)

    def write_models(self, field: str) -> None:
        (self.site / "shop/models.py").write_text(MODELS.format(field=field), encoding="utf-8")


def expect(text: str, *parts: str) -> None:
    for part in parts:
        if part not in text:
            raise SystemExit(f"{text}\nhas no {part!r}")


def go(project: Project, requirements: Sequence[str]) -> None:
    project.run("-m", "pip", "install", "-q", *requirements)
    project.run("-m", "django", "startproject", "mysite", ".")
    project.manage("startapp", "shop")
    settings = project.site / "mysite/settings.py"
    settings.write_text(
        settings.read_text(encoding="utf-8") + '\nINSTALLED_APPS += ["shop", "safemigrate"]\n',
        encoding="utf-8",
    )
    project.write_models("")
    project.manage("makemigrations", "shop")
    project.manage("migrate")
    project.manage("shell", "-c", FILL)

    project.write_models(FIELD)
    written = project.manage(
        "add_required_field", "shop.Customer.expires", "--populate", "F('joined') + timedelta(days=365)"
    )
    expect(written, "Wrote shop/migrations/0002_customer_expires.py", "python manage.py migrate shop")
    project.manage("makemigrations", "--check", "--dry-run")
    expect(project.manage("migrate", "shop"), "Applying shop.0002_customer_expires... OK")
    project.manage("shell", "-c", LOOK)
    expect(project.manage("backfill", "list"), "shop.Customer.expires", "succeeded")
    expect(
        project.manage("backfill", "verify", "shop.Customer.expires"), "0 rows without a value", "0 differ"
    )
    expect(project.manage("backfill", "report"), "safemigrate ", "Django ")

    project.manage("migrate", "shop", "0001")
    expect(project.manage("migrate", "shop"), "OK")
    project.manage("shell", "-c", LOOK)
    project.manage("check", "--database", "default")


def main(wheel: str, *more: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        go(Project(Path(folder)), [str(Path(wheel).resolve()), *more])
    print("The first five minutes went well.")


if __name__ == "__main__":
    main(*sys.argv[1:])
