"""The docs are tests: what they show runs, what they name exists."""

from __future__ import annotations

import ast
import itertools
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.main

from orchestrator.cli import app
from orchestrator.driver import Options, run_sweep
from orchestrator.errors import SweepError
from orchestrator.results import Results
from orchestrator.schemas import SCALARS, SPECTRA, TRIALS
from orchestrator.sweep import parse
from orchestrator.sweep_schema import FIELDS
from orchestrator.trends import TRENDS
from tasks import TrainingConfig, per_trial_fields

ROOT = Path(__file__).parents[1]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands

# The demo in small: the same name, axes and matrices, so that examples find what they name.
DEMO = """
name: grokking
task: modular_addition
base: {modulus: 5, train_fraction: 0.7, width: 16, feed_forward: 16, positions: learned, steps: 8}
grid: {weight_decay: [0.0, 1.0]}
seeds: 2
snapshots: {at: [4]}
tracking: none
"""
VECTORS = f"""{DEMO.replace("name: grokking", "name: vectors")}
measure: {{groups: [agreement], keep: final}}
"""


def blocks(path: Path, language: str) -> list[str]:
    """The fenced code blocks of one language ("" for those that name none)."""
    text = path.read_text(encoding="utf-8")
    found = re.findall(r"^```([a-z]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [body for name, body in found if name == language]


def in_docs(language: str) -> list[Any]:
    return [
        pytest.param(body, id=f"{path.name}-{number}")
        for path in DOCS
        for number, body in enumerate(blocks(path, language), 1)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with the results of a small demo, and our own examples."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "examples").symlink_to(ROOT / "examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for text in (DEMO, VECTORS):
            outcome = run_sweep(parse(text), Options(in_process=True))
            assert outcome.statuses == {"completed": 4}
    return folder


# --- what runs ------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [p for p in in_docs("yaml") if p.values[0].startswith("name:")])
def test_every_sweep_file_in_the_docs_loads(text: str) -> None:
    """A reader who pastes one into a file at the top of the repository can run it."""
    assert parse(text, base=ROOT).num_trials >= 1


@pytest.mark.parametrize("path", sorted((ROOT / "sweeps").glob("*.yaml")), ids=lambda p: p.name)
def test_every_sweep_file_of_the_repository_loads(path: Path) -> None:
    """Every experiment that is offered is one that can be run."""
    assert parse(path.read_text(encoding="utf-8"), base=path.parent).num_trials >= 1


def test_the_counts_in_the_sweep_file_page_are_right() -> None:
    """`sweep-files.md` says how many configurations its examples come to."""
    files = [b for b in blocks(ROOT / "docs/sweep-files.md", "yaml") if b.startswith("name:")]

    counts = {s.name: (s.num_configurations, s.num_trials) for s in map(parse, files)}

    assert counts == {
        "shortest": (1, 1),
        "decay-and-rate": (5, 15),
        "two-blocks": (5, 5),
        "widths": (6, 6),
        "vectors": (1, 1),
    }


@pytest.mark.parametrize(
    "text", [p for p in in_docs("python") if p.values[0].startswith(("from ", "import "))]
)
def test_the_docs_python_runs(
    text: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a reader would run it, in a folder with the demo's results."""
    monkeypatch.chdir(folder)

    exec(compile(text, "docs", "exec"), {})

    assert "Error" not in capsys.readouterr().out


@pytest.mark.parametrize("text", in_docs("sql"))
def test_the_docs_sql_answers(text: str, folder: Path) -> None:
    """Every question is answered with at least one row."""
    assert Results.open(folder / "results/grokking").sql(text).num_rows >= 1


def test_the_example_task_is_the_one_that_is_explained() -> None:
    """`tasks.md` quotes the methods of `examples/my_task.py` without their docstrings."""
    quoted = {}
    for block in blocks(ROOT / "docs/tasks.md", "python"):
        for node in ast.parse(block).body:
            if isinstance(node, ast.FunctionDef):
                quoted[node.name] = ast.unparse(node)
    del quoted["views"], quoted["couplings"]  # which the example leaves out
    [task] = [
        node
        for node in ast.parse((ROOT / "examples/my_task.py").read_text()).body
        if isinstance(node, ast.ClassDef)
    ]
    written = {}
    for node in task.body:
        if isinstance(node, ast.FunctionDef):
            node.body = [s for s in node.body if not _is_text(s)]
            written[node.name] = ast.unparse(node)

    assert quoted == written


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def test_the_messages_that_are_shown_are_the_real_ones() -> None:
    """What is wrong in `sweep-files.md` gives exactly the messages printed there."""
    plain = blocks(ROOT / "docs/sweep-files.md", "")
    faulty, message, of_override, of_conflict = plain
    demo = (ROOT / "sweeps/grokking.yaml").read_text()
    conflict = "name: a\ntask: modular_addition\nbase: {optimizer: sgd, eps: 1e-6}\n"
    cases = (
        (message, faulty, "first.yaml", ()),
        (of_override, demo, "sweeps/grokking.yaml", ("base.steps=abc",)),
        (of_conflict, conflict, "second.yaml", ()),
    )
    for shown, text, source, overrides in cases:
        with pytest.raises(SweepError) as caught:
            parse(text, source=source, overrides=overrides)
        assert f"error: {caught.value}\n" == shown


# --- commands -------------------------------------------------------------------------------


COMMAND = re.compile(r"(?:^|/| )sweep ((?:'[^']*'|\"[^\"]*\"|[^'\"\n])*)", re.MULTILINE)


def commands(text: str) -> Iterator[list[str]]:
    """The words of every `sweep ...` command in shell text, without what a shell takes away."""
    for words in COMMAND.findall(text):
        lexer = shlex.shlex(words, posix=True, punctuation_chars="|>&;")
        lexer.whitespace_split = True
        yield list(itertools.takewhile(lambda word: not set(word) <= set("|>&;"), lexer))


def mistake(given: list[str]) -> str | None:
    """What typer says of a command line, or None if it would run the command."""
    name, *arguments = given
    if name not in COMMANDS:
        return f"no command {name!r}"
    try:
        COMMANDS[name].make_context(name, list(arguments))
    except Exception as error:  # typer's own classes are private
        return f"sweep {shlex.join(given)}: {error.format_message()}"
    return None


def test_every_command_line_in_the_docs_is_accepted() -> None:
    """Each `sweep ...` of a shell block names a real command with real options and arguments."""
    given = [c for path in DOCS for block in blocks(path, "sh") for c in commands(block)]

    assert len(given) > 20
    assert [found for found in map(mistake, given) if found] == []


def test_every_command_named_in_a_sentence_exists() -> None:
    """Inline, a command may leave out its arguments; its name and its options are real."""
    named = {
        span
        for path in DOCS
        for span in re.findall(r"`sweep ([^`]+)`", path.read_text(encoding="utf-8"))
    }
    wrong = []
    for span in named - {"submit"}:  # which the README says is not there yet
        names = re.findall(r"(?:^|\| )([a-z-]+)", span)
        options = {o for n in names if n in COMMANDS for p in COMMANDS[n].params for o in p.opts}
        used = set(re.findall(r"--[a-z-]+", span))
        if not set(names) <= COMMANDS.keys() or not used <= options:
            wrong.append(span)
    assert wrong == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("sweep fly away.yaml", "no command 'fly'"),
        ("sweep run a --bogus", "sweep run a --bogus: No such option: --bogus"),
        ("sweep run", "sweep run: Missing argument 'FILE'."),
    ],
)
def test_a_wrong_command_line_is_noticed(line: str, said: str) -> None:
    """The twin of the tests above: they can fail."""
    [given] = commands(line)

    assert mistake(given) == said


def test_every_command_is_documented() -> None:
    """README or docs show each command at least once."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in DOCS)

    assert [name for name in COMMANDS if f"sweep {name}" not in text] == []


# --- what is named exists -------------------------------------------------------------------


def test_every_link_leads_somewhere() -> None:
    """Relative links in any Markdown file of the repository; comments are not read."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    broken = []
    for name in listed:
        path = ROOT / name
        if not path.is_file():
            continue
        text = re.sub(r"<!--.*?-->", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            if "://" not in target and not (path.parent / target).exists():
                broken.append(f"{name}: {target}")
    assert broken == []


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_no_page_names_a_folder_of_one_machine(path: Path) -> None:
    """Absolute paths mean nothing to a reader."""
    text = path.read_text(encoding="utf-8")

    assert re.findall(r"(?<![\w.:/<>~-])/(?:home|root|tmp|work|opt|mnt|usr|var)/\S*", text) == []


def test_the_design_page_lists_every_module() -> None:
    """Who adds a module says in one line what it is for (docs/design.md, section 3)."""
    text = (ROOT / "docs/design.md").read_text(encoding="utf-8")
    modules = [
        path
        for package in ("spectral", "tasks", "orchestrator")
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
    ]
    rows = re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`((?:models/)?\w+\.py)`", row)}
    there = {("models/" if p.parent.name == "models" else "") + p.name for p in modules}

    assert (sorted(there - named), sorted(named - there)) == ([], [])


def test_every_field_of_a_sweep_file_has_its_section() -> None:
    """In the order of the schema, and no others."""
    text = (ROOT / "docs/sweep-files.md").read_text(encoding="utf-8")

    assert re.findall(r"^### `(\w+)`", text, re.MULTILINE) == list(FIELDS)


def test_every_shared_parameter_is_explained() -> None:
    """The table of `tasks.md` has the fields of TrainingConfig, their defaults and markers."""
    text = (ROOT / "docs/tasks.md").read_text(encoding="utf-8")
    section = text.partition("## Shared parameters")[2].partition("\n## ")[0]
    told = {}
    for names, default, marker, _ in re.findall(
        r"^\| (`[^|]*) \| ([^|]*) \|([^|]*)\| ([^|]*) \|$", section, re.MULTILINE
    ):
        for name in re.findall(r"`(\w+)`", names):
            told[name] = (default.strip("` "), marker.strip() == "yes")
    marked = per_trial_fields(TrainingConfig)
    fields = TrainingConfig.model_fields

    assert told.keys() == fields.keys()
    assert {name: per_trial for name, (_, per_trial) in told.items()} == {
        name: name in marked for name in fields
    }
    for name, (default, _) in told.items():
        value = fields[name].default
        assert default == ("none" if value is None else default)
        if isinstance(value, int | float):
            assert float(default) == value, name
        elif value is not None:
            assert default == (value if isinstance(value, str) else str([*value])), name


def test_every_column_is_explained() -> None:
    """`results.md` names each column of the tables, and no other in its sections."""
    text = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    for table, schema in (("scalars", SCALARS), ("spectra", SPECTRA)):
        section = text.partition(f"### `{table}`")[2].partition("\n#")[0]
        cells = re.findall(r"^\| (`[^|]*) \|", section, re.MULTILINE)
        assert {n for cell in cells for n in re.findall(r"`(\w+)`", cell)} == set(schema.names)
    section = text.partition("### `trials`")[2].partition("\n#")[0]
    for name in TRIALS.names:
        assert f"`{name}`" in section
    section = text.partition("### `trends`")[2].partition("\n#")[0]
    for name in TRENDS.names:
        assert f"`{name}`" in section
