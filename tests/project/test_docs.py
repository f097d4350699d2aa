"""The documentation says what is: its commands run, its SQL is the real one, nothing is left out or made up."""

from __future__ import annotations

import ast
import doctest
import inspect
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from io import StringIO
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from django.core.management import call_command, load_command_class
from django.core.management.base import BaseCommand
from django.db import connections, migrations, models
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ProjectState
from django.db.models import Case, F, Value, When

import safemigrate
from safemigrate import conf, exceptions, operations, populate
from safemigrate.exceptions import SafemigrateError
from safemigrate.operations import AddRequiredField
from safemigrate.populate import PerRow, Suffix
from tests.conftest import ROOT
from tests.support.sandbox import question
from tests.support.sessions import skip_on_mysql
from tools import demo

DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
PAGES = [page for page in PAGES if "_build" not in page.parts]
RUNNABLE = ["tutorial.md", "how-to/make-a-field-required.md", "how-to/rolling-deploy.md"]
BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")


@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md"])
def test_a_page_in_portuguese_shows_what_the_other_one_shows(page: str) -> None:
    english, portuguese = ROOT / page, (ROOT / page).with_suffix(".pt-BR.md")
    assert blocks(portuguese) == blocks(english)

    def rows(page: Path) -> int:
        return len(re.findall(r"^\|", page.read_text(encoding="utf-8"), re.MULTILINE))

    assert rows(portuguese) == rows(english)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def text(path: str) -> str:
    return (DOCS / path).read_text(encoding="utf-8")


def blocks(page: Path) -> list[tuple[str, str]]:
    return [(language, body) for _, language, body in BLOCK.findall(page.read_text(encoding="utf-8"))]


def section(page: str, heading: str) -> str:
    """The page's text from this heading to the next one."""
    match = re.search(rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert match, f"no section {heading}"
    return match[1]


# Nothing is left out


@pytest.mark.parametrize("operation", operations.__all__)
def test_an_operation_is_documented_with_its_signature(operation: str) -> None:
    signature = parameters(getattr(operations, operation))
    assert f"{operation}({signature})" in section(text("reference/operations.md"), operation)


@pytest.mark.parametrize("kind", populate.__all__)
def test_a_kind_of_populate_is_documented_with_its_signature(kind: str) -> None:
    signature = parameters(getattr(populate, kind))
    assert f"{kind}({signature})" in section(text("reference/populate.md"), kind)


def parameters(function: Any) -> str:
    """A signature as a page shows it: without types, quotes as we write them."""
    given = list(inspect.signature(function.__init__).parameters.values())[1:]
    plain = [parameter.replace(annotation=parameter.empty) for parameter in given]
    return str(inspect.Signature(plain))[1:-1].replace("'", '"')


@pytest.mark.parametrize("argument", ["only", "select_related", "prepare", "unique", "function"])
def test_an_argument_of_per_row_is_explained(argument: str) -> None:
    assert argument in inspect.signature(PerRow.__init__).parameters
    assert f"| `{argument}` |" in section(text("reference/populate.md"), "PerRow")


def own_options() -> list[str]:
    parser = load_command_class("safemigrate", "add_required_field").create_parser("", "")
    common = BaseCommand().create_parser("", "")._option_string_actions
    return sorted(set(parser._option_string_actions) - set(common))


def test_every_option_of_the_command_is_documented() -> None:
    page = text("reference/command.md")
    table = "\n".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `-"))
    shown = re.findall(r"--?[a-z][a-z-]*", table)
    assert sorted(shown) == own_options()


def test_every_setting_is_documented_with_its_default() -> None:
    rows = re.findall(r"^\| `(SAFEMIGRATE_\w+)` \| `([^`]+)` \|", text("reference/settings.md"), re.MULTILINE)
    assert rows == [(key, repr(setting.default)) for key, setting in conf.SETTINGS.items()]


def test_every_error_is_documented() -> None:
    own = {
        key
        for key, value in vars(exceptions).items()
        if isinstance(value, type) and value.__module__ == exceptions.__name__
    }
    for module in pkgutil.walk_packages(safemigrate.__path__, "safemigrate."):
        import_module(module.name)
    own |= {error.__name__ for error in descendants(SafemigrateError)}
    assert set(re.findall(r"^### `(\w+)`$", text("reference/errors.md"), re.MULTILINE)) == own


def descendants(base: type) -> Iterator[type]:
    for child in base.__subclasses__():
        if child.__module__.startswith("safemigrate."):
            yield child
            yield from descendants(child)


def test_every_module_has_its_row() -> None:
    rows = "\n".join(
        line.split("|")[2] for line in text("explanation/engine.md").splitlines() if re.match(r"\| \d", line)
    )
    modules = {module.name for module in pkgutil.iter_modules(safemigrate.__path__)} - {"migrations"}
    assert {shown.partition("/")[0] for shown in re.findall(r"`([\w/]+)`", rows)} == modules


def test_the_layers_of_the_page_are_those_that_lint_holds() -> None:
    (line,) = re.findall(r"^`.*` < `.*`$", text("explanation/engine.md"), re.MULTILINE)
    (contract,) = re.findall(
        r"^layers = (\[.*?^\])",
        (ROOT / "pyproject.toml").read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
    low_to_high = [layer.replace("safemigrate.", "").split(" : ") for layer in ast.literal_eval(contract)][
        ::-1
    ]
    rest = re.compile(r"schema\.(?!steps|fields)\w+")
    held = [{rest.sub("schema", name) for name in layer} for layer in low_to_high]
    assert [set(layer.strip("`").split()) for layer in line.split(" < ")] == held


def test_every_page_is_in_the_table_of_contents() -> None:
    for folder in (DOCS, *(path for path in DOCS.iterdir() if (path / "index.md").exists())):
        index = (folder / "index.md").read_text(encoding="utf-8")
        listed = re.findall(
            r"^([\w/.-]+)$", "\n".join(re.findall(r"```\{toctree\}(.*?)```", index, re.DOTALL)), re.MULTILINE
        )
        assert {page.stem for page in folder.glob("*.md")} - {"index"} <= set(listed)


# Nothing is made up


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_what_a_page_names_exists(page: Path) -> None:
    body = page.read_text(encoding="utf-8")
    for path in re.findall(r"`(safemigrate(?:\.\w+)+)`", body):
        imported(path)
    for setting in re.findall(r"\bSAFEMIGRATE_[A-Z_]+\b", body):
        assert setting in conf.SETTINGS
    for path in re.findall(r"`((?:safemigrate|tests|docs|tools)/[\w/.]*)`", body):
        assert (ROOT / path).exists() or path.startswith("docs/_build"), path


def imported(path: str) -> Any:
    try:
        return import_module(path)
    except ModuleNotFoundError:
        module, _, attribute = path.rpartition(".")
        return getattr(import_module(module), attribute)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_link_leads_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_in_a_page_is_python_and_imports_what_exists(page: Path) -> None:
    for language, body in blocks(page):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(dedent(body))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith(("safemigrate", "django")):
                for alias in node.names:
                    imported(f"{node.module}.{alias.name}")


# What it shows is what comes


class Project:
    """The example as it was before the field, in which a page's blocks are run one after another."""

    def __init__(self, folder: Path) -> None:
        demo.copy_project_before(folder)
        self.folder = folder

    def follow(self, page: Path) -> None:
        for language, body in blocks(page):
            if language == "console":
                self.type(body)
            elif language == "diff":
                self.change(body)
            elif language == "python" and body.startswith("# polls/"):
                path, _, content = body.partition("\n")
                (self.folder / path.removeprefix("# ")).write_text(content, encoding="utf-8")

    def type(self, session: str) -> None:
        for command, shown in re.findall(r"^\$ (.+)\n((?:(?!\$ ).*\n)*)", session, re.MULTILINE):
            said = self.run(shlex.split(command))
            assert same(said, shown), f"$ {command}\nshown:\n{shown}\nsaid:\n{said}"

    def run(self, command: list[str]) -> str:
        if command[0] == "cat":
            return (self.folder / command[1]).read_text(encoding="utf-8")
        assert command[:2] == ["python", "manage.py"]
        inherited = {key: value for key, value in os.environ.items() if key not in demo.OURS}
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        done = subprocess.run(
            [sys.executable, *command[1:]],
            cwd=self.folder,
            env=inherited | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUTF8": "1", "NO_COLOR": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
        )
        # Progress lines come to standard error where a machine is slow.
        return done.stdout if done.returncode == 0 else done.stdout + done.stderr

    def change(self, diff: str) -> None:
        header, *lines = diff.splitlines()
        path = self.folder / header.removeprefix("--- ")
        before = "\n".join(line[1:] for line in lines if line[0] in " -")
        after = "\n".join(line[1:] for line in lines if line[0] in " +")
        content = path.read_text(encoding="utf-8")
        assert content.count(f"{before}\n") == 1
        path.write_text(content.replace(f"{before}\n", f"{after}\n"), encoding="utf-8")


def same(said: str, shown: str) -> bool:
    """Compare as doctest does, `...` standing for anything."""
    return doctest.OutputChecker().check_output(shown, said, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)


@pytest.mark.slow
def test_the_tutorial_can_be_followed(tmp_path: Path) -> None:
    Project(tmp_path / "project").follow(DOCS / "tutorial.md")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """The example with some rows."""
    project = Project(tmp_path / "project")
    project.run(["python", "manage.py", "migrate", "-v", "0"])
    project.run(["python", "manage.py", "seed_polls", "100", "--choices", "0"])
    return project


def add_expires_date(project: Project, options: str = "") -> None:
    line = f'    expires_date = models.DateTimeField("expires at"{options})'
    pub_date = '     pub_date = models.DateTimeField("date published")'
    project.change(f"--- polls/models.py\n{pub_date}\n+{line}")


@pytest.mark.slow
def test_three_phases_go_as_the_page_says(project: Project) -> None:
    add_expires_date(project)
    project.follow(DOCS / "how-to/rolling-deploy.md")


@pytest.mark.slow
def test_a_nullable_field_is_made_required_as_the_page_says(project: Project) -> None:
    add_expires_date(project, ", null=True")
    project.run(["python", "manage.py", "makemigrations", "-v", "0"])
    project.run(["python", "manage.py", "migrate", "-v", "0"])
    project.follow(DOCS / "how-to/make-a-field-required.md")


def test_other_pages_show_no_session_that_is_not_run() -> None:
    showing = {page for page in PAGES if any(language == "console" for language, _ in blocks(page))}
    portuguese = {ROOT / "README.pt-BR.md", DOCS / "tutorial.pt-BR.md"}
    assert showing == {DOCS / page for page in RUNNABLE} | {ROOT / "README.md"} | portuguese


@pytest.mark.slow
def test_the_readme_shows_what_the_demo_prints(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.demo", "--rows", "500", "--folder", str(tmp_path / "demo")],
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if key not in demo.OURS} | {"PYTHONUTF8": "1"},
        capture_output=True,
        encoding="utf-8",
    )
    printed = {line.strip() for line in done.stdout.splitlines()}
    shown = [
        line.strip()
        for language, body in blocks(ROOT / "README.md")
        if language in ("console", "python")
        for line in body.splitlines()
    ]
    if "postgresql   ✓" not in done.stdout:
        shown = [line for line in shown if "postgresql" not in line]
    assert shown
    assert not {line.replace("100,000", "500") for line in shown} - printed


def text_of(row: Any) -> str:
    return str(row.question_text)


def site_of(row: Any) -> int:
    return 1


ADDED: dict[str, AddRequiredField] = {
    "unique": AddRequiredField(
        "question", "slug", models.SlugField(unique=True), PerRow(text_of, unique=Suffix("-"))
    ),
    "foreign-key": AddRequiredField(
        "question", "site", models.ForeignKey("docs.Site", on_delete=models.CASCADE), site_of
    ),
    "db-default": AddRequiredField("question", "votes", models.PositiveIntegerField(db_default=0), F("pk")),
    "constant": AddRequiredField("question", "votes", models.PositiveIntegerField(), 0),
    "common": AddRequiredField(
        "question",
        "state",
        models.CharField(max_length=9),
        Case(When(question_text="", then=Value("empty")), default=Value("open")),
    ),
}
COLUMNS = {"plain": "expires_date", "unique": "slug", "foreign-key": "site_id", "db-default": "votes"}


def test_the_sql_shown_is_the_sql_run(alias: str, request: pytest.FixtureRequest) -> None:
    skip_on_mysql(alias, "the page shows MariaDB's")
    kind = request.node.callspec.params["alias"]
    page = DOCS / "explanation/steps.md"
    marked = re.compile(rf"(<!-- sql: ([\w-]+) {kind}(?: beside (\w+))? -->\n```sql\n)(.*?)(```)", re.DOTALL)
    shown = page.read_text(encoding="utf-8")
    assert marked.search(shown)

    def written(match: re.Match[str]) -> str:
        lines = sql(match[2], alias)
        return f"{match[1]}{others(lines, match[2], match[3], shown) if match[3] else lines}{match[5]}"

    real = marked.sub(written, shown)
    if os.environ.get("UPDATE_DOCS"):
        page.write_text(real, encoding="utf-8")
    assert shown == real


def others(lines: str, case: str, beside: str, page: str) -> str:
    """The steps that a plain field does not have, but for the fill; the other ones are the same, in the same order."""
    (whole,) = re.findall(rf"<!-- sql: plain {beside} -->\n```sql\n(.*?)```", page, re.DOTALL)
    plain, real = steps_of(whole, "plain"), steps_of(lines, case)
    known, titles = ([same.partition("\n")[0] for same in steps] for steps in (plain, real))
    assert [title for title in titles if title in known] == [title for title in known if title in titles]
    assert all(re.match("-- (fill|guard|take the guard of) ", title) for title in set(known) - set(titles))
    return "".join(
        step for same, step in real.items() if same not in plain and not step.startswith("-- fill ")
    )


def steps_of(lines: str, case: str) -> dict[str, str]:
    """Each step, a comment that ends with its lock and statements, by its text without the column's name and type."""
    type_of_column = re.findall(r"ADD COLUMN \S+ (.+?) NULL", lines)[0]
    steps = re.split(r"^(?=-- (?:fill .*|.*\))$)", lines, flags=re.MULTILINE)[1:]
    return {step.replace(COLUMNS[case], "COLUMN").replace(type_of_column, "TYPE"): step for step in steps}


def sql(case: str, alias: str) -> str:
    """What `sqlmigrate` prints, without the operation's own line."""
    if case == "plain":
        output = StringIO()
        call_command("sqlmigrate", "polls", "0003", database=alias, stdout=output, no_color=True)
        lines = output.getvalue().strip().splitlines()
    else:
        lines = collected(ADDED[case], alias)
    # psycopg and psycopg2 write the same interval in different ways.
    return re.sub(r"'[^']*'::interval", "'30 days'::interval", "\n".join(lines[3:])) + "\n"


def collected(operation: Operation, alias: str) -> list[str]:
    state = ProjectState()
    site = migrations.CreateModel(
        "Site", [("id", models.BigAutoField(primary_key=True))], {"db_table": "polls_site"}
    )
    for made in (site, question(db_table="polls_question")):
        made.state_forwards("docs", state)
    migration = migrations.Migration("0002_docs", "docs")
    migration.operations, migration.atomic = [operation], False
    with connections[alias].schema_editor(atomic=False, collect_sql=True) as editor:
        migration.apply(state, editor, collect_sql=True)
    return list(editor.collected_sql)
