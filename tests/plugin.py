"""What a run of the tests takes in, and the database servers that it needs.

By default: SQLite and the PostgreSQL of the wheel, no slow test, and of a matrix each case that a stable hash gives to
one of the two, of all databases. `--slow` adds the slow tests, `--all` is every test on every database.

The servers are booted before pytest-django reads the settings, and stopped after the run. Each is announced
in the environment, where `tests.settings` finds it and pytest-xdist's workers inherit it:
`SAFEMIGRATE_TEST_MARIADB` holds a URL, or `SAFEMIGRATE_TEST_MARIADB_MISSING` the reason why there is none.
Set the URL yourself to test on a server of your own, MySQL in MariaDB's place:

    SAFEMIGRATE_TEST_MARIADB=mysql://root@127.0.0.1:3306/x make test ARGS="--databases mariadb --slow"

`tools.newer_servers` does so with those that a later Debian has.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tools.servers import MariaDB, MissingServer, PostgreSQL, Server, system_postgresql

PREFIX = "SAFEMIGRATE_TEST_"

#: The databases of a run that is not asked for others.
DEFAULT = "sqlite,postgresql"
#: The markers of tests that may take longer than this, in seconds.
SLOW, QUICK_SECONDS = {"browser", "slow"}, 2.0

too_slow: dict[str, float] = {}


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

ALL = ["sqlite", *(name.lower() for name in SERVERS)]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("safemigrate")
    group.addoption("--all", action="store_true", help="every test, on every database")
    group.addoption("--slow", action="store_true", help="the slow tests too")
    group.addoption("--on-databases-alone", action="store_true", help="only what runs once on each database")
    group.addoption("--databases", default=DEFAULT, metavar="NAMES", help=f"of {','.join(ALL)}: {DEFAULT}")


def databases(options: argparse.Namespace) -> list[str]:
    return ALL if options.all else options.databases.split(",")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.all:
        return
    kept = sampled(items, config.option)
    left = set(items) - set(kept)
    config.hook.pytest_deselected(items=list(left))
    items[:] = kept


def is_wanted(item: pytest.Item, options: argparse.Namespace) -> bool:
    if not options.slow and any(item.get_closest_marker(name) for name in SLOW):
        return False
    wanted = databases(options)
    named = {value for value in parameters(item).values() if isinstance(value, str) and value in ALL}
    return named <= set(wanted) and bool(named or not options.on_databases_alone)


def sampled(items: list[pytest.Item], options: argparse.Namespace) -> list[pytest.Item]:
    """Keep one database for each case of a matrix, by the name of the case: the same one in every run.

    By default it is one of all databases that the case has, so that many are left out; else, and for a slow test or
    one of one case, one of those of this run.
    """
    cases = defaultdict(list)
    for item in items:
        cases[case(item) if item.get_closest_marker("matrix") else item.nodeid].append(item)
    kept = []
    for name, same in cases.items():
        is_slow = any(same[0].get_closest_marker(mark) for mark in SLOW)
        is_one_of_several = len(parameters(same[0])) > 1 and options.databases == DEFAULT and not is_slow
        wanted = [item for item in same if is_wanted(item, options)]
        choice = same if is_one_of_several else wanted
        if choice and (chosen := choice[zlib.crc32(name.encode()) % len(choice)]) in wanted:
            kept.append(chosen)
    return kept


def case(item: pytest.Item) -> str:
    """Return the name of the test without that of its database."""
    alias = parameters(item).get("alias")
    rest = [part for part in item.callspec.id.split("-") if part != alias] if alias else [item.name]
    return "-".join([item.parent.nodeid, item.originalname, *rest])


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and report.duration > QUICK_SECONDS and not SLOW & set(report.keywords):
        too_slow[report.nodeid] = report.duration


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    # Only a line: on a busy machine any test may take longer.
    for name, seconds in too_slow.items() if not terminalreporter.config.option.all else ():
        terminalreporter.line(f"{name} took {seconds:.1f} s: make it quicker, or mark it slow", red=True)


def parameters(item: pytest.Item) -> dict[str, object]:
    return item.callspec.params if hasattr(item, "callspec") else {}


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Generator[None, None, None]:
    if f"{PREFIX}FOLDER" not in os.environ:  # in an xdist worker all of this is there
        make_folder(early_config)
        boot_all(early_config, databases(early_config.known_args_namespace))
    return (yield)


def make_folder(config: pytest.Config) -> None:
    folder = tempfile.mkdtemp(prefix="safemigrate-tests-")
    os.environ[f"{PREFIX}FOLDER"] = folder
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def boot_all(config: pytest.Config, names: list[str]) -> None:
    wanted = [name for name in SERVERS if name.lower() in names and PREFIX + name not in os.environ]
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
