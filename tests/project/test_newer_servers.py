"""Where servers of a later Debian come from, and what is said where they cannot be had."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import newer_servers
from tools.newer_servers import SERVERS, UnavailableError, main, mirror

ADDRESS = "https://mirror.example.org/debian"


@pytest.fixture
def no_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(newer_servers, "VENVS", tmp_path)
    monkeypatch.setattr(newer_servers, "SOURCES", [str(tmp_path / "none.list")])


@pytest.mark.usefixtures("no_packages")
def test_what_cannot_be_had_is_said_to_be_not_run_and_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    said = capsys.readouterr().out
    for server in SERVERS:
        assert (
            f"NOT RUN: the tests on a newer {server.name}. There is no mirror of Debian in /etc/apt." in said
        )


@pytest.mark.usefixtures("no_packages")
def test_one_of_them_is_asked_for_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mysql", "--", "-k", "guards"]) == 0
    assert capsys.readouterr().out.count("NOT RUN") == 1


@pytest.mark.parametrize(
    "text",
    [
        f"# a comment\nTypes: deb\nURIs: {ADDRESS}\nSuites: bookworm\n",
        f"deb {ADDRESS} bookworm main\n",
        f"deb [signed-by=/usr/share/keyrings/any.gpg] {ADDRESS} bookworm main\n",
    ],
)
def test_the_mirror_is_that_of_the_machine(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.list").write_text(
        "deb https://other.example.org/security bookworm main\n", encoding="utf-8"
    )
    (tmp_path / "b.list").write_text(text, encoding="utf-8")
    monkeypatch.setattr(newer_servers, "SOURCES", [str(tmp_path / "*.list")])
    assert mirror() == ADDRESS


def test_a_command_that_fails_is_a_server_that_cannot_be_had() -> None:
    with pytest.raises(UnavailableError, match="failed"):
        newer_servers.done("false")
    with pytest.raises(UnavailableError, match="needs Debian"):
        newer_servers.done("no-such-program-anywhere")
