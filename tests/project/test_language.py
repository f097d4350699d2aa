"""One word for one thing: see docs/reference/glossary.md. What stands here is not to come back."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

#: A pattern, and what to write in its place.
GONE = {
    r"\broads?\b|Road\b": "steps, plan, fast path",
    r"\bdoors?\b": "reject NULLs, accept NULLs",
    r"\b[Ss]hifts?\b": "worker",
    r"\b(told|tells?)\b": "report, send, log, warn, show",
    r"\b[Pp]ulses?\b": "heartbeat",
    r"\b[Ss]weeps?\b": "pass (over the table), requeue (of messages)",
    r"[Ss]tragglers?": "remaining keys",
    r"\b[Ll]edgers?\b": "observer, recorder",
    r"\b[Ff]orecasts?\b|foretell": "plan",
    r"\bUpcoming\b|\bComing\b": "unapplied operation",
    r"\brehearse": "validate",
    r"\bsteer|STEERINGS": "control, ACTIONS",
    r"\bsettles?\b": "enforce (NOT NULL), finalize (a run)",
    r"\bvitals\b": "monitoring",
    r"\b_?hired?\b": "start, started",
    r"\bhung\b": "stalled",
    r"in the way\b|in_the_way": "blocking, blocked by",
    r"\b([Ww]hoever|[Nn]obody|[Ss]omebody)\b": "a user, another process, none, or no subject",
    r"\b[Mm]eanwhile\b": "in the meantime, or nothing",
    r"for an instant": "briefly",
    r"taken back": "rolled back",
    r"in good order": "cleanly",
}
#: Names of others that hold one of the words.
ALLOWED = re.compile(r"[\"']nobody[\"':]")


def texts() -> list[Path]:
    code = [
        path
        for folder in ("safemigrate", "tests", "tools", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
    ]
    prose = [
        *ROOT.glob("*.md"),
        *(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts),
    ]
    return [path for path in [*code, *prose] if path != Path(__file__).resolve()]


def test_no_word_that_is_gone_comes_back() -> None:
    gone = re.compile("|".join(f"(?:{pattern})" for pattern in GONE))
    found = []
    for path in texts():
        text = ALLOWED.sub("", path.read_text(encoding="utf-8"))
        for match in gone.finditer(text):
            number = text.count("\n", 0, match.start()) + 1
            found.append(f"{path.relative_to(ROOT)}:{number}: {match.group()}: write {better(match.group())}")
    assert not found, "\n".join(found)


def better(word: str) -> str:
    return next(words for pattern, words in GONE.items() if re.fullmatch(f"(?:{pattern}).*", word))


def test_each_pattern_finds_its_word() -> None:
    for word in (
        "road",
        "doors",
        "shift",
        "told",
        "Sweep",
        "hung",
        "in the way",
        "Nobody",
        "for an instant",
        "hired",
    ):
        assert better(word)
