"""What each process of a site imports of safemigrate: next to nothing, unless it fills."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import ROOT

SETUP = """
import os, sys
os.environ["DJANGO_SETTINGS_MODULE"] = "mysite.settings"
import django
django.setup()
print(*sorted(name for name in sys.modules if name.startswith(("safemigrate", "tqdm"))))
"""

#: With the admin, and without a command or a migration.
IMPORTED = """
safemigrate
safemigrate.admin
safemigrate.admin.chart
safemigrate.admin.filters
safemigrate.admin.model_admin
safemigrate.admin.pages
safemigrate.apps
safemigrate.conf
safemigrate.connections
safemigrate.engine
safemigrate.engine.context
safemigrate.engine.progress
safemigrate.exceptions
safemigrate.models
safemigrate.runs
safemigrate.runs.heartbeat
safemigrate.runs.status
safemigrate.runs.store
safemigrate.signals
safemigrate.types
"""


def test_a_web_process_imports_no_engine_no_backend_and_no_bar() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SETUP],
        cwd=ROOT / "example_polls",
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'example_polls'}", "PATH": ""},
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    # The example enqueues work of its own.
    own = {name for name in done.stdout.split() if not name.startswith("safemigrate.executors")}
    assert own == set(IMPORTED.split())
