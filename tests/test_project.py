"""The habits of the project that a machine can hold us to."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VENDORS = ("ray", "optuna", "mlflow", "ruamel", "duckdb", "typer", "rich", "matplotlib", "pyarrow")

# Which module may import which vendor; a package of ours may import its own modules besides.
HOMES = {
    "ray": {
        "orchestrator.addresses",
        "orchestrator.cluster",
        "orchestrator.connection",
        "orchestrator.job",
        "orchestrator.jobs",
        "orchestrator.worker",
    },
    "optuna": {"orchestrator.search"},
    "mlflow": {"orchestrator.tracking"},
    "ruamel": {"orchestrator.document"},
    "duckdb": {"orchestrator.query"},
    "typer": {
        "orchestrator.cli",
        "orchestrator.commands_cluster",
        "orchestrator.commands_report",
        "orchestrator.commands_tasks",
        "orchestrator.commands_tracking",
        "orchestrator.options",
    },
    "rich": {
        "orchestrator.commands_report",
        "orchestrator.display",
        "orchestrator.loading",
        "orchestrator.options",
    },
    "datasets": {"tasks.data"},
    "librosa": set(),
    "soundfile": {"tasks.audio"},
    "tokenizers": {"tasks.text"},
    "sklearn": {"tasks.images"},
}
READERS = {"datasets", "soundfile", "tokenizers", "sklearn", "pyarrow.parquet"}
# What the packages may import beyond the standard library.
ALLOWED = {
    "spectral": {"spectral", "torch", "numpy", "scipy"},
    "tasks": {"tasks", "torch", "numpy", "pydantic", "pydantic_core", "spectral.views", *READERS},
}


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, at whatever depth, with its line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module, node.lineno


def breaches(root: Path) -> list[str]:
    """Imports that cross a fence, as `file:line imports module`."""
    found = []
    for package in ("spectral", "tasks", "orchestrator"):
        for path in sorted((root / package).rglob("*.py")):
            module = ".".join(path.relative_to(root).with_suffix("").parts)
            for name, line in imports(path):
                top = name.partition(".")[0]
                homes = HOMES.get(top)
                allowed = ALLOWED.get(package)
                wrong = homes is not None and module not in homes
                if allowed is not None and top not in sys.stdlib_module_names:
                    wrong |= not any(name == a or name.startswith(a + ".") for a in allowed)
                if wrong:
                    found.append(f"{path.relative_to(root)}:{line} imports {name}")
    return found


def test_every_import_stays_inside_its_fence() -> None:
    """Each vendor is imported in one place, and the numerics import nothing of ours."""
    assert breaches(ROOT) == []


def test_a_breach_of_a_fence_is_found(tmp_path: Path) -> None:
    """The twin of the test above: it can fail, also for an import inside a function."""
    (tmp_path / "spectral").mkdir()
    (tmp_path / "orchestrator").mkdir()
    (tmp_path / "spectral" / "bad.py").write_text("import orchestrator.store\n")
    (tmp_path / "orchestrator" / "driver.py").write_text("def f():\n    from ray import init\n")

    assert breaches(tmp_path) == [
        "spectral/bad.py:1 imports orchestrator.store",
        "orchestrator/driver.py:2 imports ray",
    ]


def run_without(vendors: tuple[str, ...], code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new interpreter where these packages cannot be imported."""
    blocker = f"""
        import sys
        class Blocker:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in {vendors!r}:
                    raise ModuleNotFoundError("No module named " + repr(name))
        sys.meta_path.insert(0, Blocker())
    """
    script = textwrap.dedent(blocker) + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=120
    )


NOT_ON_A_WORKER = ("ray", "optuna", "mlflow", "ruamel", "duckdb", "typer", "rich", "matplotlib")


def test_a_trial_needs_no_orchestration_vendor() -> None:
    """`spectral`, `tasks` and `orchestrator.trial` import with Ray, Optuna and MLflow absent."""
    done = run_without(NOT_ON_A_WORKER, "import spectral, tasks, orchestrator.trial; print('ok')")

    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


def test_the_absence_check_can_fail() -> None:
    """The twin of the test above: a module that does need Ray fails under the same blocker."""
    done = run_without(NOT_ON_A_WORKER, "import orchestrator.cluster")

    assert done.returncode == 1
    assert "No module named 'ray'" in done.stderr


@pytest.mark.parametrize("package", ["spectral", "tasks", "orchestrator"])
def test_public_names_can_be_imported(package: str) -> None:
    """Each name of `__all__` is there, lazily or not, and stands there once."""
    module = __import__(package)

    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_nothing_in_the_project_names_a_machine_of_its_authors() -> None:
    """Paths of one machine and hosts of package registries have no place in a public project."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    words = ("/ro" + "ot/", "/wo" + "rk/", "py" + "pi.org", "npm" + "js.org")
    found = []
    for name in listed:
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".yaml", ".txt", ""} and path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            found += [f"{name}: {word}" for word in words if word in text]
    assert found == []
