"""`manage.py` in a fork of a process that has imported Django: as in a new process, without its second of imports.

The fork has the folder, the environment, the arguments and the streams of the command, and ends with its exit code.
What Python reads as it starts (PYTHONHASHSEED, -W) it does not have: that needs a process of its own.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from select import select
from typing import IO

ROOT = Path(__file__).resolve().parent.parent.parent

#: What most commands import, and what can be imported before there are settings.
IMPORTS = [
    "asyncio",
    "django.contrib.admin.utils",
    "django.contrib.auth.hashers",
    "django.core.mail.message",
    "django.core.management",
    "django.core.serializers.json",
    "django.db.backends.sqlite3.base",
    "django.db.migrations.autodetector",
    "django.db.migrations.executor",
    "django.db.migrations.questioner",
    "django.forms",
    "django.http",
    "django.test.utils",
    "django.urls",
    "safemigrate.operations",
    "safemigrate.populate",
    "safemigrate.throttles",
]


def run(
    arguments: list[str], folder: Path, environment: dict[str, str], seconds: float
) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` in the folder. Raises TimeoutExpired, after which the process is killed."""
    request = {"arguments": arguments, "folder": str(folder), "environment": environment}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(server())
            socket.send_fds(client, [b"."], [out.fileno(), err.fileno()])
            with client.makefile("rw") as stream:
                stream.write(json.dumps(request) + "\n")
                stream.flush()
                pid = int(stream.readline())
                client.settimeout(seconds)
                try:
                    code = int(stream.readline())
                except TimeoutError:
                    os.kill(pid, signal.SIGKILL)
                    raise subprocess.TimeoutExpired(arguments, seconds) from None
        return subprocess.CompletedProcess(arguments, code, text_of(out), text_of(err))


def text_of(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()


@cache
def server() -> str:
    """Start the process that is forked, once; return its socket. It ends with this process, whose pipe closes then."""
    folder = tempfile.mkdtemp(prefix="safemigrate-forks-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = f"{folder}/socket"
    command = [sys.executable, "-m", __name__, path]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    atexit.register(process.wait)
    assert process.stdin is not None
    atexit.register(process.stdin.close)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return path


def serve(path: str) -> None:
    for name in IMPORTS:
        import_module(name)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        while sys.stdin not in select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            with connection:
                _, fds, _, _ = socket.recv_fds(connection, 1, 2)
                with connection.makefile("rw") as stream:
                    request = json.loads(stream.readline())
                    pid = os.fork()
                    if pid == 0:
                        break
                    report(stream, pid, fds)
        else:
            return
    become(fds, **request)


def report(stream: IO[str], pid: int, fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
    with suppress(OSError):  # The test has given up.
        print(pid, file=stream, flush=True)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with suppress(OSError):
        print(code, file=stream, flush=True)


def become(fds: list[int], arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    """Be `python ARGUMENTS`, up to its end."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, fd in enumerate(fds, 1):
        os.dup2(fd, number)
        os.close(fd)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    paths = [folder, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    sys.path[:] = [*paths, *(path for path in sys.path if path not in paths)]
    sys.dont_write_bytecode = "PYTHONDONTWRITEBYTECODE" in environment
    sys.argv = arguments
    runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    serve(sys.argv[1])
