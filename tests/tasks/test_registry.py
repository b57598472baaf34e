"""Finding a task by name, entry point or file, and telling versions of its source apart."""

import importlib
import importlib.metadata
import sys
import textwrap

import pytest

from tasks import REGISTRY, Task, TaskError, available, resolve, source_files, source_hash
from tasks.modular_addition import ModularAddition
from tests.tasks.toys import Line

COMPLETE = '''
import torch
from torch import nn
from tasks import Task, TrainingConfig

class Mine(Task):
    """A complete task."""
    Config = TrainingConfig
    def build(self, streams): return nn.Linear(1, 1)
    def batch(self, streams, step, micro): return {}
    def loss(self, forward, batch): return torch.zeros(()), torch.ones(())
    def eval_data(self, streams, split): return {}
    def evaluate(self, forward, data): return {}
'''


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a module into a folder of its own; what its import leaves behind is removed."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def _write(text, name="mine.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    yield _write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def message(reference, base=None):
    with pytest.raises(TaskError) as caught:
        resolve(reference, base)
    return str(caught.value)


def test_our_own_tasks_are_found_by_name():
    assert resolve("modular_addition") is ModularAddition
    assert available()["modular_addition"] == "tasks.modular_addition:ModularAddition"


def test_every_registered_class_has_its_registered_name():
    assert {name: resolve(name).name for name in REGISTRY} == {name: name for name in REGISTRY}


def test_a_task_of_another_distribution_is_found_by_its_entry_point(tmp_path, monkeypatch, write):
    """A real installed distribution: a .dist-info folder on the path, as an installer leaves it."""
    write(COMPLETE, "elsewhere.py")
    write("Metadata-Version: 2.1\nName: other\nVersion: 1\n", "other-1.dist-info/METADATA")
    write(
        "[spectral_sweeps.tasks]\nfar_away = elsewhere:Mine\nbroken = elsewhere:Nothing\n"
        "absent = not_installed:Mine\n",
        "other-1.dist-info/entry_points.txt",
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()

    assert resolve("far_away").__name__ == "Mine"
    assert available()["far_away"] == "elsewhere:Mine"
    assert message("broken") == (
        f"task 'broken': {tmp_path}/elsewhere.py has no class 'Nothing'; classes found: Mine"
    )
    assert message("absent").endswith("ModuleNotFoundError: No module named 'not_installed'")


def test_a_task_by_path_is_found_relative_to_the_base(write, tmp_path):
    """And is the same class however the path is written."""
    write(COMPLETE)
    found = resolve("mine.py:Mine", tmp_path)

    assert issubclass(found, Task)
    assert found.name == "Mine"
    assert resolve(f"{tmp_path}/mine.py:Mine") is found
    assert resolve("../" + tmp_path.name + "/mine.py:Mine", tmp_path) is found


def test_a_task_by_path_may_import_the_files_beside_it(write, tmp_path):
    write("WIDTH = 3\n", "beside_mine.py")
    write(COMPLETE + "\nfrom beside_mine import WIDTH\n")

    assert resolve("mine.py:Mine", tmp_path).__name__ == "Mine"


def test_an_edited_file_is_imported_anew(write, tmp_path):
    write(COMPLETE)
    first = resolve("mine.py:Mine", tmp_path)
    write(COMPLETE + "\nMine.version = 2\n")

    assert (first.version, resolve("mine.py:Mine", tmp_path).version) == (1, 2)


def test_an_unknown_name_is_answered_with_the_nearest_and_all_available():
    own = "a task of your own is written path/to/file.py:Class"
    names = ", ".join(sorted(available()))
    assert message("modular_adition") == (
        "unknown task 'modular_adition' (did you mean modular_addition?); "
        f"available: {names}; {own}"
    )
    assert message("xyz") == f"unknown task 'xyz'; available: {names}; {own}"


def test_a_missing_file_is_named_in_full(tmp_path):
    assert message("gone.py:Mine", tmp_path) == (
        f"task 'gone.py:Mine': there is no file {tmp_path}/gone.py"
    )


def test_a_failing_import_is_located(write, tmp_path):
    """File, line and exception; the user's line rather than one in a library it called."""
    write("import json\n\nSETTINGS = json.loads('{')\n")
    assert message("mine.py:Mine", tmp_path) == (
        f"task 'mine.py:Mine' cannot be imported: {tmp_path}/mine.py, line 3: JSONDecodeError: "
        "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"
    )

    write("x = 1\nclass Mine(:\n")
    assert message("mine.py:Mine", tmp_path) == (
        f"task 'mine.py:Mine' cannot be imported: {tmp_path}/mine.py, line 2: SyntaxError: "
        "invalid syntax"
    )


def test_a_missing_class_is_answered_with_those_that_are_there(write, tmp_path):
    write(COMPLETE + "\nclass Other: pass\n")

    assert message("mine.py:Mime", tmp_path) == (
        f"task 'mine.py:Mime': {tmp_path}/mine.py has no class 'Mime' (did you mean Mine?); "
        "classes found: Mine, Other"
    )
    assert message("mine.py", tmp_path) == (
        f"task 'mine.py': {tmp_path}/mine.py names no class; classes found: Mine, Other; "
        "write mine.py:Class"
    )
    write("", "empty.py")
    assert message("empty.py:Mine", tmp_path) == (
        f"task 'empty.py:Mine': {tmp_path}/empty.py has no class 'Mine'; classes found: none"
    )


def test_a_class_that_cannot_be_used_says_what_it_lacks(write, tmp_path):
    write(
        """
        from tasks import Task, TrainingConfig

        class Plain: pass
        class Bare(Task): pass
        class Half(Task):
            Config = TrainingConfig
            def build(self, streams): ...
            def loss(self, forward, batch): ...
        """
    )

    assert message("mine.py:Plain", tmp_path) == (
        "task 'mine.py:Plain': Plain is not a task; derive it from tasks.Task"
    )
    assert message("mine.py:Bare", tmp_path) == (
        "task 'mine.py:Bare': Bare has no Config; give it a class Config that derives from "
        "tasks.TrainingConfig"
    )
    assert message("mine.py:Half", tmp_path) == (
        "task 'mine.py:Half': Half does not define batch, eval_data, evaluate"
    )


def test_the_source_hash_ignores_comments_formatting_and_docstrings(write, tmp_path):
    write(COMPLETE)
    first = source_hash(resolve("mine.py:Mine", tmp_path))
    write(COMPLETE.replace("A complete task.", "Other words.").replace(", ", ",  ") + "\n# more\n")
    second = source_hash(resolve("mine.py:Mine", tmp_path))

    assert first == second
    assert len(first) == 16
    assert set(first) <= set("0123456789abcdef")


def test_the_source_hash_follows_changes_in_the_file_and_beside_it(write, tmp_path):
    """Directly imported, imported by the imported, and inside a function; not what is unrelated."""
    write("from beside_two import B\n", "beside_one.py")
    write("B = 1\n", "beside_two.py")
    write("C = 1\n", "beside_three.py")
    write("D = 1\n", "unrelated.py")
    text = COMPLETE + "\nimport beside_one\ndef later():\n    import beside_three\n"
    write(text)
    task = resolve("mine.py:Mine", tmp_path)
    hashes = [source_hash(task)]
    for name, changed in (
        ("unrelated.py", "D = 2\n"),
        ("beside_two.py", "B = 2\n"),
        ("beside_three.py", "C = 2\n"),
        ("mine.py", text + "x = 1\n"),
    ):
        write(changed, name)
        hashes.append(source_hash(task))

    assert hashes[0] == hashes[1]
    assert len(set(hashes[1:])) == 4


def test_the_source_hash_of_our_own_task_covers_our_own_modules(tmp_path, monkeypatch, write):
    """A package: absolute and relative imports of its modules are followed, parents are not."""
    write("", "packaged/__init__.py")
    write("A = 1\n", "packaged/absolute.py")
    write("R = 1\n", "packaged/inner/relative.py")
    write("", "packaged/inner/__init__.py")
    write(
        COMPLETE + "\nfrom packaged import absolute\nfrom .inner.relative import R\n",
        "packaged/task.py",
    )
    monkeypatch.syspath_prepend(tmp_path)
    import packaged.task

    hashes = [source_hash(packaged.task.Mine)]
    for name, text in (("absolute.py", "A = 2\n"), ("inner/relative.py", "R = 2\n")):
        write(text, f"packaged/{name}")
        hashes.append(source_hash(packaged.task.Mine))

    assert len(set(hashes)) == 3
    assert source_hash(ModularAddition) != source_hash(Line)


@pytest.mark.parametrize(("where", "module"), [("rooted", "rooted"), ("rooted/sub", "rooted.sub")])
def test_a_task_in_the_init_of_a_package_follows_the_package(
    tmp_path, monkeypatch, write, where, module
):
    """It is the package's own module: what it imports lies in the package, not beside it."""
    write("", "rooted/__init__.py")
    write("", "rooted/sub/__init__.py")
    write("A = 1\n", "rooted/model.py")
    write("B = 1\n", f"{where}/near.py")
    write("C = 1\n", "beside.py")
    text = "\nfrom rooted import model\nfrom .near import B\nimport beside\n"
    write(COMPLETE + text, f"{where}/__init__.py")
    monkeypatch.syspath_prepend(tmp_path)
    task = importlib.import_module(module).Mine

    root, files = source_files(task)
    hashes = [source_hash(task)]
    for name in ("beside.py", "rooted/model.py", f"{where}/near.py"):
        write("CHANGED = 2\n", name)
        hashes.append(source_hash(task))

    assert root == tmp_path
    assert {file.relative_to(root).as_posix() for file in files} == {
        "rooted/__init__.py",
        f"{where}/__init__.py",
        "rooted/model.py",
        f"{where}/near.py",
    }
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


def test_a_class_without_a_source_file_has_no_source_hash():
    namespace = {"__name__": "typed_in"}
    exec(COMPLETE, namespace)

    with pytest.raises(
        TaskError, match=r"^task Mine has no source file to tell its versions apart by$"
    ):
        source_hash(namespace["Mine"])
