"""The code of a sweep in a folder: what travels, what is named, what cannot be taken along."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import shutil
import subprocess
import sys
from importlib.metadata import Distribution
from pathlib import Path

import pytest

import tasks
from orchestrator import shipping
from orchestrator.errors import SweepError
from orchestrator.shipping import Shipment, installable, ship
from orchestrator.sweep import Sweep, parse
from tests.clusters import links

FAULTY = Path(__file__).parents[1] / "faulty_task.py"
PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "{name}"
version = "1.2"
dependencies = {dependencies}

[project.entry-points."spectral_sweeps.tasks"]
{entries}

[tool.setuptools]
packages = ["{package}"]
"""


def make_project(
    folder: Path, package: str, *, task: str = "", dependencies: tuple[str, ...] = ()
) -> Path:
    """The source of a distribution; its task, if it has one, is the tests' own under this name."""
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").touch()
    entries = ""
    if task:
        text = FAULTY.read_text().replace("class Faulty", "class Foreign")
        (folder / package / "task.py").write_text(text)
        entries = f'{task} = "{package}.task:Foreign"'
    name = package.replace("_", "-")
    (folder / "pyproject.toml").write_text(
        PROJECT.format(
            name=name, package=package, entries=entries, dependencies=json.dumps(dependencies)
        )
    )
    return folder


def install(source: Path, target: Path, *options: str) -> Path:
    """What `pip install` makes of a project, in a folder for the import path."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--disable-pip-version-check", "--target", str(target)]
    subprocess.run([*command, *options, str(source)], check=True)
    return target


def edit(source: Path) -> None:
    """Change a project's task after it was installed."""
    file = next(source.glob("*/task.py"))
    file.write_text(file.read_text() + "\nEDITED = True\n")


def import_from(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))
    importlib.invalidate_caches()


def sweep_of(task: str, base: Path, *, tracking: str = "none") -> Sweep:
    text = f"name: toy\ntask: {task}\nbase: {{steps: 1}}\ntracking: {tracking}\n"
    if task == "modular_addition":
        text = text.replace("{steps: 1}", "{modulus: 5, steps: 1}")
    return parse(text, source="toy.yaml", base=base)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def refusal(sweep: Sweep, target: Path) -> str:
    with pytest.raises(SweepError) as caught:
        ship(sweep, target)
    return str(caught.value)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Shipment:
    """A sweep of our own task without tracking."""
    folder = tmp_path_factory.mktemp("plain")
    return ship(sweep_of("modular_addition", folder), folder / "image")


def test_our_packages_travel_with_their_metadata(plain: Shipment) -> None:
    """Every module and nothing that depends on this machine; entry points are found there."""
    root = Path(shipping.__file__).parents[1]
    found = contents(plain.folder)

    assert plain.task == "modular_addition"
    for package in ("spectral", "tasks", "orchestrator"):
        for path in [*(root / package).rglob("*.py"), *(root / package).rglob("*.yaml")]:
            assert found[path.relative_to(root).as_posix()] == path.read_bytes()
    assert {Path(name).parts[0].partition("-")[0] for name in found} == {
        "spectral",
        "tasks",
        "orchestrator",
        "spectral_sweeps",
    }
    assert not [name for name in found if "__pycache__" in name or "direct_url" in name]
    [ours] = Distribution.discover(name="spectral-sweeps", path=[str(plain.folder)])
    assert {entry.name for entry in ours.entry_points} >= {"sweep", "modular_addition"}


def test_the_same_code_gives_the_same_bytes(plain: Shipment, tmp_path: Path) -> None:
    """Ray names an upload by its contents, so that equal code is sent once."""
    again = ship(sweep_of("modular_addition", tmp_path), tmp_path / "image")

    assert contents(again.folder) == contents(plain.folder)


def test_requirements_are_pinned_to_the_versions_installed_here(plain: Shipment) -> None:
    """Workers need little; a driver more; torch and Ray are compared, never installed."""
    worker = ["numpy", "pyarrow", "pydantic", "ray", "scipy", "torch"]

    assert [name for name, _ in plain.requirements] == worker
    assert {name for name, _ in plain.driver} == {
        *worker,
        "matplotlib",
        "rich",
        "ruamel.yaml",
        "typer",
    }
    for name, version in plain.driver:
        assert version == importlib.metadata.version(name)
    assert installable(plain.requirements) == [
        f"{name}=={importlib.metadata.version(name)}"
        for name in ("numpy", "pyarrow", "pydantic", "scipy")
    ]


def test_a_driver_needs_mlflow_only_where_it_tracks(tmp_path: Path) -> None:
    sweep = sweep_of("modular_addition", tmp_path, tracking="{uri: http://127.0.0.1:1}")

    assert "mlflow" in dict(ship(sweep, tmp_path / "image").driver)


@pytest.mark.parametrize(
    ("which", "modules"),
    [
        ("requirements", "orchestrator.cluster, tasks.modular_addition"),
        (
            "driver",
            "orchestrator.cli, orchestrator.dispatch, orchestrator.job, orchestrator.plots, "
            "orchestrator.results, orchestrator.site, orchestrator.staging, orchestrator.summaries",
        ),
    ],
)
def test_the_requirements_cover_what_is_imported(
    plain: Shipment, tmp_path: Path, which: str, modules: str
) -> None:
    """With them, and what they require in turn, a worker or a driver imports all that it uses."""
    names = ["ray[default]" if name == "ray" else name for name, _ in getattr(plain, which)]
    python = links(tmp_path / "environment", *names)

    done = subprocess.run([python, "-c", f"import {modules}"], cwd=plain.folder, check=False)

    assert done.returncode == 0


def test_a_task_by_path_travels_with_what_it_imports(tmp_path: Path) -> None:
    """Modules and packages beside it, and no other file; the copy has the original's hash."""
    folder = tmp_path / "mine"
    (folder / "parts" / "deep").mkdir(parents=True)
    shutil.copy(FAULTY, folder / "base_task.py")
    (folder / "parts" / "__init__.py").write_text("import parts_of_parts\n")
    (folder / "parts_of_parts.py").write_text("")
    (folder / "parts" / "deep" / "__init__.py").write_text("from . import scale\n")
    (folder / "parts" / "deep" / "scale.py").write_text("SCALE = 2\n")
    (folder / "unrelated.py").write_text("raise SystemExit\n")
    (folder / "mine.py").write_text(
        "from base_task import Faulty\nfrom parts.deep.scale import SCALE\n\n\n"
        "class Mine(Faulty):\n    name = 'mine'\n    scale = SCALE\n"
    )
    sweep = sweep_of("mine.py:Mine", folder)

    shipped = ship(sweep, tmp_path / "image")

    assert shipped.task == "task_files/mine.py:Mine"
    names = {name for name in contents(shipped.folder) if name.startswith("task_files/")}
    assert names == {
        f"task_files/{name}"
        for name in (
            "mine.py",
            "base_task.py",
            "parts_of_parts.py",
            "parts/__init__.py",
            "parts/deep/__init__.py",
            "parts/deep/scale.py",
        )
    }
    code = f"import tasks; print(tasks.source_hash(tasks.resolve({shipped.task!r})))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=shipped.folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == tasks.source_hash(sweep.task_class)


def test_what_a_task_by_path_imports_besides_is_required(tmp_path: Path) -> None:
    """It is used here, so it is needed there, in this version; what is not installed is not."""
    text = "\nimport yaml\ntry:\n    import no_such_thing\nexcept ImportError:\n    pass\n"
    (tmp_path / "mine.py").write_text(FAULTY.read_text() + text)

    shipped = ship(sweep_of("mine.py:Faulty", tmp_path), tmp_path / "image")

    version = importlib.metadata.version("PyYAML")
    assert ("PyYAML", version) in shipped.requirements
    assert ("PyYAML", version) in shipped.driver


def test_a_module_that_belongs_to_no_package_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder on PYTHONPATH exists on this machine alone."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "stray_helpers.py").touch()
    import_from(tmp_path / "elsewhere", monkeypatch)
    file = tmp_path / "mine.py"
    file.write_text(FAULTY.read_text() + "\nimport stray_helpers\n")

    assert refusal(sweep_of("mine.py:Faulty", tmp_path), tmp_path / "image") == (
        f"toy.yaml: 1 problem\n  {file} imports stray_helpers from "
        f"{tmp_path}/elsewhere/stray_helpers.py, which belongs to no installed package, so that it "
        "cannot be taken along. Put it beside mine.py, or make a package of it and install it"
    )


def test_an_installed_task_package_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files, its metadata, its requirements; a requirement that no index has comes along."""
    helper = make_project(tmp_path / "helper", "copied_helper", dependencies=("PyYAML",))
    needs = ("copied-helper", "spectral-sweeps", "torch", 'no-such-thing; extra == "x"')
    main = make_project(tmp_path / "main", "copied_tasks", task="copied", dependencies=needs)
    site = install(main, install(helper, tmp_path / "site"))
    import_from(site, monkeypatch)
    sweep = sweep_of("copied", tmp_path)

    shipped = ship(sweep, tmp_path / "image")

    found = contents(shipped.folder)
    assert shipped.task == "copied"
    assert found["copied_tasks/task.py"] == (main / "copied_tasks" / "task.py").read_bytes()
    assert "copied_helper/__init__.py" in found
    [copy] = Distribution.discover(name="copied-tasks", path=[str(shipped.folder)])
    assert [entry.value for entry in copy.entry_points] == ["copied_tasks.task:Foreign"]
    assert ("PyYAML", importlib.metadata.version("PyYAML")) in shipped.requirements
    assert not {"copied-helper", "copied-tasks", "spectral-sweeps"} & dict(shipped.driver).keys()


def test_a_package_whose_task_is_in_its_init_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the modules that it imports, and with the same hash there as here."""
    source = make_project(tmp_path / "source", "initial_tasks", task="initial")
    package = source / "initial_tasks"
    (package / "task.py").rename(package / "model.py")
    (package / "__init__.py").write_text(
        "from .model import Foreign\n\n\nclass Initial(Foreign):\n    name = 'initial'\n"
    )
    project = source / "pyproject.toml"
    project.write_text(
        project.read_text().replace("initial_tasks.task:Foreign", "initial_tasks:Initial")
    )
    import_from(install(source, tmp_path / "site"), monkeypatch)
    sweep = sweep_of("initial", tmp_path)

    shipped = ship(sweep, tmp_path / "image")

    assert {"initial_tasks/__init__.py", "initial_tasks/model.py"} <= contents(
        shipped.folder
    ).keys()
    code = "import tasks; print(tasks.source_hash(tasks.resolve('initial')))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=shipped.folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == tasks.source_hash(sweep.task_class)


@pytest.fixture
def editable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The source folder of a task package that is installed editable, as `pip install -e` does."""
    source = make_project(tmp_path / "source", "edited_tasks", task="edited")
    import_from(install(source, tmp_path / "site", "--editable"), monkeypatch)
    import_from(source, monkeypatch)  # as the .pth file of a real site-packages would
    for name in [name for name in sys.modules if name.startswith("edited_tasks")]:
        monkeypatch.delitem(sys.modules, name)
    return source


def test_an_editable_task_package_is_built_as_it_stands(editable: Path, tmp_path: Path) -> None:
    """Also what was edited since it was installed; the build leaves its folder as it was."""
    edit(editable)
    (editable / "build" / "lib" / "edited_tasks").mkdir(parents=True)
    (editable / "build" / "lib" / "edited_tasks" / "removed.py").write_text("left from earlier\n")
    before = contents(editable)

    shipped = ship(sweep_of("edited", tmp_path), tmp_path / "image")

    found = contents(shipped.folder)
    assert found["edited_tasks/task.py"].endswith(b"EDITED = True\n")
    assert "edited_tasks/removed.py" not in found
    assert contents(editable) == before


def test_a_package_that_does_not_build_is_refused_with_pips_words(
    editable: Path, tmp_path: Path
) -> None:
    sweep = sweep_of("edited", tmp_path)
    project = editable / "pyproject.toml"
    project.write_text(project.read_text().replace('"edited_tasks"', '"no_such_package"'))

    said = refusal(sweep, tmp_path / "image").splitlines()

    assert said[:2] == [
        "toy.yaml: 1 problem",
        f"  the package in {editable} does not build, and the cluster needs it. pip said:",
    ]
    assert any("package directory 'no_such_package' does not exist" in line for line in said)
    assert len(said) <= 18
    assert said[-1] == (
        f"    Correct it until this works: {sys.executable} -m pip wheel --no-deps {editable}"
    )


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (
            "[project]",
            "[project",
            "TOMLDecodeError: Expected ']' at the end of a table declaration",
        ),
        ("setuptools.build_meta", "no_such_backend", "No module named 'no_such_backend'"),
        ('version = "1.2"', "version = 3", "ValueError: invalid pyproject.toml config"),
    ],
)
def test_a_broken_pyproject_is_refused_without_a_traceback(
    editable: Path, tmp_path: Path, old: str, new: str, why: str
) -> None:
    """What was raised, and neither pip's own code nor the build tool's."""
    sweep = sweep_of("edited", tmp_path)
    project = editable / "pyproject.toml"
    project.write_text(project.read_text().replace(old, new))

    said = refusal(sweep, tmp_path / "image").splitlines()

    assert why in said[2]
    assert not [line for line in said if "Traceback" in line or 'File "' in line]
    assert len(said) <= 5


def test_a_package_that_leaves_out_its_task_is_refused(editable: Path, tmp_path: Path) -> None:
    """A subpackage that pyproject.toml forgets is importable here and would be missing there."""
    sub = editable / "edited_tasks" / "sub"
    sub.mkdir()
    (sub / "__init__.py").touch()
    (sub / "more.py").touch()
    task = editable / "edited_tasks" / "task.py"
    task.write_text(task.read_text() + "\nfrom edited_tasks.sub import more\n")

    assert refusal(sweep_of("edited", tmp_path), tmp_path / "image") == (
        f"toy.yaml: 1 problem\n  {sub}/__init__.py is not in the package that it belongs to, as "
        "that is built. Install the package again, and see that its pyproject.toml names every "
        "package of it"
    )
