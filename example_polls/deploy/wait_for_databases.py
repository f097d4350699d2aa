"""Wait until every database of the settings answers: python -m deploy.wait_for_databases [SECONDS]

It looks for a connection and nothing else: it neither migrates, nor asks whether somebody has.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable

import django
from django.db import OperationalError, connections
from django.db.backends.base.base import BaseDatabaseWrapper

PAUSE = 0.5


def main(seconds: float = 60.0) -> int:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
    django.setup()
    deadline = time.monotonic() + seconds
    while silent := list(refusals(connections.all())):
        if time.monotonic() > deadline:
            print(f"After {seconds:g} s there is still no answer.", *silent, sep="\n", file=sys.stderr)
            return 1
        time.sleep(PAUSE)
    return 0


def refusals(databases: Iterable[BaseDatabaseWrapper]) -> Iterable[str]:
    """Yield what each database says that does not let us in."""
    for connection in databases:
        try:
            connection.ensure_connection()
        except OperationalError as error:
            yield f"{connection.alias}: {str(error).strip()}"
        finally:
            connection.close()


if __name__ == "__main__":
    sys.exit(main(*map(float, sys.argv[1:])))
