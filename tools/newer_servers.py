"""The tests on servers that are newer than this Debian's own: MySQL, MariaDB and PostgreSQL of its later suites.

    python -m tools.newer_servers                        each on its tests
    python -m tools.newer_servers mysql -- -k guards     one of them, with arguments for pytest

Their packages come by apt, signatures checked, from the mirror that the machine uses. They are unpacked below
`.matrix/`, with all their libraries; nothing is installed. What cannot be had is NOT RUN, said loudly, and no failure:
a later suite may lack it one day.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tools.matrix import ROOT, VENVS, split
from tools.servers import WITHOUT_TLS, MariaDB, MySQL, PostgreSQL, Server, ServerError, is_public, is_root

SOURCES = ["/etc/apt/sources.list.d/*.sources", "/etc/apt/sources.list.d/*.list", "/etc/apt/sources.list"]
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
#: What these packages depend on and the servers run without: interpreters, set-up, the compiler of PostgreSQL's JIT.
UNNEEDED = re.compile(
    r"(lib)?perl|lib.+-perl$|libllvm|libz3|postgresql(-client)?-common$|ssl-cert|sysvinit|adduser"
)
#: Each program is started by the loader that came with it, which finds the libraries that came with it.
WRAPPER = '#!/bin/sh\nexec "{loader}" --library-path "{libraries}" --argv0 "$0" "{program}" "$@"\n'
BANNER = "*" * 100


class UnavailableError(Exception):
    """The server cannot be had here, for the reason given."""


@dataclass(frozen=True)
class Newer:
    """A server of another suite; it is tested in the place of one of `tests.plugin`."""

    name: str
    suite: str
    packages: tuple[str, ...]
    server: Callable[[Path], Server]  # from the root of what was unpacked
    instead_of: str
    tests: tuple[str, ...]
    driver: str = ""  # in the place of the installed one, where it can be built here


SERVERS = [
    Newer(
        "mysql",
        "sid",
        ("mysql-server-core",),
        lambda root: MySQL(root / "usr"),
        "mariadb",
        ("tests",),
        driver="mysqlclient",
    ),
    Newer(
        "mariadb",
        "trixie",
        ("mariadb-server-core", "mariadb-client-core"),
        lambda root: MariaDB(root / "usr"),
        "mariadb",
        ("tests/backends", "tests/schema"),
    ),
    Newer(
        "postgresql",
        "trixie",
        ("postgresql-17",),
        lambda root: PostgreSQL(root / "usr/lib/postgresql/17/bin"),
        "postgresql",
        ("tests/backends", "tests/schema"),
    ),
]
#: Where the packages of all have their programs.
PROGRAMS = ["usr/bin", "usr/sbin", "usr/lib/postgresql/*/bin"]


def main(arguments: Sequence[str]) -> int:
    names, pytest_arguments = split(arguments)
    chosen = [newer for newer in SERVERS if not names or newer.name in names]
    # While the tests run on one, the next is fetched.
    with place() as folder, ThreadPoolExecutor() as pool:
        roots = [pool.submit(fetched, newer, folder) for newer in chosen]
        codes = [
            run(newer, root.result, folder, pytest_arguments)
            for newer, root in zip(chosen, roots, strict=True)
        ]
    return max(codes, default=0)


@contextmanager
def place() -> Generator[Path, None, None]:
    """Give a folder that the servers' user may read: kept, or of this run alone below a private one."""
    kept = VENVS / "servers"
    kept.mkdir(parents=True, exist_ok=True)
    if not is_root() or is_public(kept):
        yield kept
        return
    with tempfile.TemporaryDirectory(prefix="safemigrate-servers-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def run(newer: Newer, root: Callable[[], Path], folder: Path, pytest_arguments: Sequence[str]) -> int:
    print(f"\n== the tests on a newer {newer.name}", flush=True)
    started = time.monotonic()
    try:
        server = newer.server(root())
        server.start()
    except (UnavailableError, ServerError, OSError) as reason:
        shout(f"the tests on a newer {newer.name}. {reason}")
        return 0
    try:
        # What the server it stands for has, and this one has not, is skipped.
        environment = {name: value for name, value in os.environ.items() if name != "CI"}
        url = server.url
        print(f"It was there after {time.monotonic() - started:.0f} s.", flush=True)
        try:
            if path := built(newer.driver, folder):
                url = url.removesuffix(WITHOUT_TLS)  # which is the other one's
                print(f"The driver is {newer.driver}.", flush=True)
                environment["PYTHONPATH"] = os.pathsep.join(
                    filter(None, [str(path), os.environ.get("PYTHONPATH")])
                )
        except UnavailableError as reason:
            shout(f"the tests with {newer.driver}; they are with what is installed. {reason}")
        chosen = [*newer.tests, "--databases", newer.instead_of, "--on-databases-alone", *pytest_arguments]
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-n", "auto", *chosen],
            check=False,
            cwd=ROOT,
            env=environment | {f"SAFEMIGRATE_TEST_{newer.instead_of.upper()}": url},
        ).returncode
    finally:
        server.stop()


def shout(reason: str) -> None:
    print(f"{BANNER}\nNOT RUN: {reason}\n{BANNER}", flush=True)


def built(driver: str, folder: Path) -> Path | None:
    """Return where the driver is, apart from the environment, whose other tests are with another one."""
    if not driver:
        return None
    place = folder / f"{driver}-{sys.implementation.cache_tag}"
    if not place.exists():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        done(*pip, "--no-deps", "-c", str(ROOT / "constraints.txt"), "--target", place, driver)
    return place


def fetched(newer: Newer, folder: Path) -> Path:
    """Return the root of what was unpacked, which is done the first time."""
    root = folder / newer.name
    ready = root / "ready"
    if not ready.exists():
        shutil.rmtree(root, ignore_errors=True)
        fetch(newer, root)
        ready.touch()
    return root


def fetch(newer: Newer, root: Path) -> None:
    apt = Apt(root / "apt", newer.suite)
    apt("update")
    planned = apt("-s", "install", *newer.packages)
    names = re.findall(r"^Inst (\S+)", planned, re.MULTILINE)
    apt("download", *(name for name in names if not UNNEEDED.match(name)))
    for package in apt.folder.glob("*.deb"):
        done("dpkg-deb", "-x", package, root)
        package.unlink()
    root.chmod(0o755)
    for programs in [folder for pattern in PROGRAMS for folder in root.glob(pattern)]:
        wrap(root, programs)


class Apt:
    """An apt-get that knows one suite, and nothing of what is installed here."""

    def __init__(self, folder: Path, suite: str) -> None:
        self.folder = folder
        for name in ("lists/partial", "archives/partial"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "status").touch()
        (folder / "sources").write_text(f"deb [signed-by={KEYS}] {mirror()} {suite} main\n", encoding="utf-8")

    def __call__(self, *words: str) -> str:
        options = {
            "Dir::Etc::sourcelist": self.folder / "sources",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::State": self.folder,
            "Dir::State::lists": self.folder / "lists",
            "Dir::State::status": self.folder / "status",
            "Dir::Cache": self.folder,
            "Dir::Cache::archives": self.folder / "archives",
            "APT::Sandbox::User": "root" if is_root() else "",
            "APT::Install-Recommends": "false",
            "Acquire::Languages": "none",
        }
        return done(
            "apt-get",
            "-q",
            *(f"-o{name}={value}" for name, value in options.items()),
            *words,
            cwd=self.folder,
        )


def mirror() -> str:
    """Return the address of the archive that this machine takes its own packages from."""
    for pattern in SOURCES:
        for path in sorted(Path("/").glob(pattern[1:])):
            found = re.search(
                r"^(?:URIs:|deb(?:\s+\[[^\]]*\])?)\s+(\S+/debian/?)(?:\s|$)",
                path.read_text(encoding="utf-8"),
                re.MULTILINE,
            )
            if found:
                return found[1]
    raise UnavailableError("There is no mirror of Debian in /etc/apt.")


def wrap(root: Path, programs: Path) -> None:
    """Let each program run as if it were at home."""
    loaders = [*root.glob("usr/lib64/ld-linux*.so.*"), *root.glob("usr/lib/ld-linux*.so.*")]
    (libc,) = root.glob("usr/lib/*/libc.so.6")
    for program in programs.iterdir():
        if program.is_symlink() or not program.is_file() or program.read_bytes()[:4] != b"\x7fELF":
            continue
        moved = program.rename(program.with_name(f"{program.name}.elf"))
        program.write_text(
            WRAPPER.format(loader=loaders[0], libraries=libc.parent, program=moved), encoding="utf-8"
        )
        program.chmod(0o755)


def done(*command: str | Path, cwd: Path = ROOT) -> str:
    try:
        result = subprocess.run(
            command, check=False, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    except FileNotFoundError as missing:
        raise UnavailableError(f"This needs Debian: {missing}.") from missing
    if result.returncode:
        raise UnavailableError(f"{command[0]} failed:\n{result.stdout[-2000:]}")
    return result.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
