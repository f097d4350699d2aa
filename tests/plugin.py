"""Boot the database servers before pytest-django reads the settings, and end them after the run.

Each is announced in the environment, where `tests.settings` finds it and pytest-xdist's workers
inherit it: `SAFEMIGRATE_TEST_MARIADB` holds a URL, or `SAFEMIGRATE_TEST_MARIADB_MISSING` the
reason why there is none. Set the URL yourself to test on a server of your own.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tools.servers import MariaDB, MissingServer, PostgreSQL, Server, system_postgresql

PREFIX = "SAFEMIGRATE_TEST_"


def old_postgresql() -> PostgreSQL:
    """The system's PostgreSQL, on Debian stable some years behind the wheel's."""
    programs = system_postgresql()
    if programs is None:
        raise MissingServer("the system has no PostgreSQL: apt-get install postgresql")
    return PostgreSQL(programs)


SERVERS: dict[str, Callable[[], Server]] = {
    "POSTGRESQL": PostgreSQL,
    "POSTGRESQL_OLD": old_postgresql,
    "MARIADB": MariaDB,
}


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Generator[None, None, None]:
    if f"{PREFIX}FOLDER" not in os.environ:  # in an xdist worker all of this is there
        make_folder(early_config)
        boot_all(early_config)
    return (yield)


def make_folder(config: pytest.Config) -> None:
    folder = tempfile.mkdtemp(prefix="safemigrate-tests-")
    os.environ[f"{PREFIX}FOLDER"] = folder
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def boot_all(config: pytest.Config) -> None:
    wanted = [name for name in SERVERS if PREFIX + name not in os.environ]
    with ThreadPoolExecutor() as pool:
        for name, server in zip(wanted, pool.map(boot, wanted), strict=True):
            if isinstance(server, MissingServer):
                os.environ[f"{PREFIX}{name}_MISSING"] = str(server)
            else:
                os.environ[PREFIX + name] = server.url
                config.add_cleanup(server.stop)


def boot(name: str) -> Server | MissingServer:
    try:
        server = SERVERS[name]()
    except MissingServer as missing:
        return missing
    server.start()
    return server
