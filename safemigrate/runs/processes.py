"""Whether another process of this machine is alive, where the machine shows it (Linux)."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")


def machine() -> str:
    """Return a text that two processes share only if they see the same process numbers; empty if unknown."""
    with suppress(OSError):
        boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {(PROC / 'self/ns/pid').readlink()}"
    return ""


def is_gone(process: int, where: str) -> bool:
    """Is it certain that the process, which ran `where` as `machine` says, has ended?"""
    if not where or where != machine():
        return False
    try:
        state = (PROC / str(process) / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    except OSError:
        return False
    return state in {"Z", "X"}
