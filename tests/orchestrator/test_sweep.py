"""What a sweep file means: trials, their order and steps; overrides, selection, files, schema."""

from __future__ import annotations

import itertools
import json
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ruamel.yaml

from orchestrator.document import tracking
from orchestrator.errors import SweepError
from orchestrator.measure import Measure
from orchestrator.schemas import TRIALS
from orchestrator.sweep import Resources, Sweep, Tracking, load, parse, schema
from orchestrator.sweep_schema import RESERVED
from tasks import available
from tests.orchestrator.test_sweep_problems import TOY

ROOT = Path(__file__).parents[2]
TOP = "name: toy\ntask: toy.py:Toy\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a task of its own, which is the working directory too."""
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def points(sweep: Sweep) -> list[str]:
    return [trial.label(sweep.axes) for trial in sweep.trials()]


def refusal(text: str, overrides: tuple[str, ...] = ()) -> list[str]:
    """The lines of the message that a file is refused with."""
    with pytest.raises(SweepError) as refused:
        parse(text, overrides=overrides)
    return [line.strip() for line in str(refused.value).split("\n")[1:]]


# --- trials and their order


def test_the_demo_is_three_weight_decays_with_three_seeds() -> None:
    """The file that the README runs says what its comments promise."""
    sweep = load(ROOT / "sweeps" / "grokking.yaml")

    assert (sweep.name, sweep.task, sweep.task_name) == ("grokking",) + ("modular_addition",) * 2
    assert (sweep.num_configurations, sweep.num_trials, sweep.axes) == (3, 9, ("weight_decay",))
    first = next(sweep.trials())
    chosen = "modulus train_fraction width heads feed_forward positions optimizer lr betas steps"
    assert [first.params[name] for name in chosen.split()] == [
        31, 0.7, 64, 4, 128, "learned", "adamw", 0.003, [0.9, 0.98], 3000,
    ]  # fmt: skip
    assert set(range(0, 3001, 50)) <= set(first.evaluations)


def test_seeds_are_the_outermost_loop(folder: Path) -> None:
    """An interrupted sweep is a complete smaller one; the last axis of the file is the fastest."""
    sweep = parse(TOP + "grid: {width: [8, 4], lr: [1, 2]}\nseeds: [7, 3]\n")

    assert points(sweep) == [
        f"width={width} lr={lr} seed={seed}"
        for seed, width, lr in itertools.product((7, 3), (8, 4), (1.0, 2.0))
    ]


def test_a_zip_moves_its_axes_together_inside_the_grid(folder: Path) -> None:
    """The rows of the zip are multiplied with the grid and vary fastest."""
    sweep = parse(TOP + "zip: {lr: [1, 2], steps: [10, 20]}\ngrid: {width: [8, 4]}\n")

    assert sweep.axes == ("width", "lr", "steps")
    assert points(sweep) == [
        "width=8 lr=1.0 steps=10 seed=0",
        "width=8 lr=2.0 steps=20 seed=0",
        "width=4 lr=1.0 steps=10 seed=0",
        "width=4 lr=2.0 steps=20 seed=0",
    ]


def test_blocks_of_a_grid_are_a_union(folder: Path) -> None:
    """Each block is a product of its own; what a block does not sweep has its default."""
    sweep = parse(TOP + "grid:\n- {width: [4, 16]}\n- {lr: [0.5], heads: [1, 4]}\n")

    assert sweep.axes == ("width", "lr", "heads")
    assert points(sweep) == [
        "width=4 lr=0.001 heads=2 seed=0",
        "width=16 lr=0.001 heads=2 seed=0",
        "width=8 lr=0.5 heads=1 seed=0",
        "width=8 lr=0.5 heads=4 seed=0",
    ]


def test_excluded_points_are_left_out_and_need_not_be_valid(folder: Path) -> None:
    """An entry leaves out every point that agrees with it, so what does not fit can go."""
    text = TOP + "grid: {width: [6, 8], heads: [2, 3], lr: [1, 2]}\nexclude:\n"
    sweep = parse(text + "- {width: 8, heads: 3}\n- {width: 6, lr: 1.0}\n")

    assert points(sweep) == [
        "width=6 heads=2 lr=2.0 seed=0",
        "width=6 heads=3 lr=2.0 seed=0",
        "width=8 heads=2 lr=1.0 seed=0",
        "width=8 heads=2 lr=2.0 seed=0",
    ]


def test_exclude_knows_the_defaults_of_other_blocks(folder: Path) -> None:
    """A block that does not sweep a parameter has its default there, which an entry may name."""
    text = TOP + "grid:\n- {width: [4, 16]}\n- {lr: [0.5]}\nexclude: [{width: 8, lr: 0.5}, "

    assert points(parse(text + "{width: 4, lr: 0.001}]\n")) == ["width=16 lr=0.001 seed=0"]


def test_without_a_grid_there_is_one_configuration(folder: Path) -> None:
    """Everything but the name and the task has a default."""
    sweep = parse(TOP)

    assert (points(sweep), sweep.seeds, sweep.axes) == (["seed=0"], (0,), ())
    assert (sweep.measure, sweep.checkpoint_seconds) == (Measure(("ranks", "spectrum")), 60.0)
    assert (sweep.resources, sweep.tracking) == (Resources(), Tracking())
    assert sweep.root == folder / "results" / "toy"


def test_a_trial_holds_every_parameter_in_json_types(folder: Path) -> None:
    """Defaults are filled in, an int for a float is one, tuples are lists; it can be pickled."""
    trial = next(parse(TOP + "base: {lr: 1, pair: [3, 4]}\n").trials())

    assert (trial.params["lr"], trial.params["pair"], trial.params["width"]) == (1.0, [3, 4], 8)
    assert isinstance(trial.params["lr"], float)
    assert "seed" not in trial.params
    assert trial.task == f"{folder}/toy.py:Toy"
    assert pickle.loads(pickle.dumps(trial)) == trial


def test_negative_zero_is_zero(folder: Path) -> None:
    """Two zeros would be two trials that compute the same."""
    sweep = parse(TOP + "base: {weight_decay: -0.0}\n")

    assert str(next(sweep.trials()).params["weight_decay"]) == "0.0"


# --- snapshots and evaluations


@pytest.mark.parametrize(
    ("written", "steps", "expected"),
    [
        ("{every: 4}", 10, (0, 4, 8, 10)),
        ("{every: 50}", 10, (0, 10)),
        ("{at: [7, 3]}", 10, (0, 3, 7, 10)),
        ("{log_spaced: 4}", 1000, (0, 1, 10, 100, 1000)),
        ("{log_spaced: 40}", 3, (0, 1, 2, 3)),
        ("{log_spaced: 2}", 1, (0, 1)),
        ("{every: 400, log_spaced: 4, at: [5]}", 1000, (0, 1, 5, 10, 100, 400, 800, 1000)),
    ],
)
def test_steps_of_snapshots(
    written: str, steps: int, expected: tuple[int, ...], folder: Path
) -> None:
    """Step 0 and the last are always in; log-spaced steps lie in [1, steps], each once."""
    trial = next(parse(TOP + f"base: {{steps: {steps}}}\nsnapshots: {written}\n").trials())

    assert trial.snapshots == trial.evaluations == expected


def test_forty_log_spaced_snapshots_are_the_default(folder: Path) -> None:
    """Stated or not, it is the same trial."""
    stated = parse(TOP + "snapshots: {log_spaced: 40}\n")

    assert list(stated.trials()) == list(parse(TOP).trials())


def test_evaluations_add_to_the_snapshots(folder: Path) -> None:
    """Whenever spectra are measured, so are the metrics."""
    text = "base: {steps: 10}\nsnapshots: {at: [7]}\nevaluations: {every: 4}\n"
    trial = next(parse(TOP + text).trials())

    assert (trial.snapshots, trial.evaluations) == ((0, 7, 10), (0, 4, 7, 8, 10))


def test_steps_may_be_swept(folder: Path) -> None:
    """Each configuration has the snapshots of its own length."""
    sweep = parse(TOP + "grid: {steps: [4, 9]}\nsnapshots: {every: 3}\n")

    assert [trial.snapshots for trial in sweep.trials()] == [(0, 3, 4), (0, 3, 6, 9)]


# --- the other fields


def test_resources_and_tracking_are_read(folder: Path) -> None:
    """Each has its type; none switches tracking off."""
    text = "resources: {cpus: 2, gpus: 0.5, group: 1}\ntracking: {uri: http://x, experiment: e}\n"

    assert parse(TOP + text).resources == Resources(2, 0.5, 1)
    assert parse(TOP + text).tracking == Tracking("http://x", "e")
    assert parse(TOP + "tracking: none\n").tracking == Tracking(enabled=False)


def test_the_order_of_measurements_does_not_matter(folder: Path) -> None:
    """They are sorted, so that two files which mean the same have the same trials."""
    assert parse(TOP + "measure: [spectrum, ranks]\n").measure == Measure(("ranks", "spectrum"))


@pytest.mark.parametrize(
    ("storage", "expected"),
    [
        ("/data/x", "/data/x"),
        ("x/y", "{cwd}/x/y"),
        ("~/x", "{home}/x"),
        ("file:///data/a%20b", "/data/a b"),
        ("file://localhost/data", "/data"),
    ],
)
def test_storage_becomes_an_absolute_path(
    storage: str, expected: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path starts from the working directory at the time of loading."""
    monkeypatch.setenv("HOME", "/home/me")

    path = expected.format(cwd=folder, home="/home/me")
    assert parse(TOP + f"storage: {storage}\n").storage == path


def test_reserved_names_are_the_columns_of_the_trials_table() -> None:
    """The loader's list is kept by hand, because the schema would load pyarrow."""
    assert frozenset(TRIALS.names) == RESERVED


def test_every_way_of_reading_a_number_is_that_of_yaml_1_2(folder: Path) -> None:
    """1e-3 is a number and 010 is ten; hexadecimal and octal are those of the core schema."""
    text = "base: {lr: 1e-3, width: 010, heads: 0o2, steps: 0x1F, eps: .5}\n"
    params = next(parse(TOP + text).trials()).params

    assert [params[name] for name in ("lr", "width", "heads", "steps", "eps")] == [
        0.001, 10, 2, 31, 0.5,
    ]  # fmt: skip


# --- overrides


def test_an_override_replaces_what_the_file_says(folder: Path) -> None:
    """Its value is read as YAML, missing mappings are made, and the text stays verbatim."""
    text = TOP + "base: {steps: 1000}\nseeds: 3\n"
    options = ("base.steps=100", "seeds=[5]", "grid.lr=[0.1, 1e-2]", "tracking=none")
    sweep = parse(text, overrides=options)

    assert points(sweep) == ["lr=0.1 seed=5", "lr=0.01 seed=5"]
    assert next(sweep.trials()).params["steps"] == 100
    assert not sweep.tracking.enabled
    assert (sweep.text, sweep.overrides) == (text, options)


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        (("seeds",), ["expected a path and a value, such as base.steps=100  @ --set seeds"]),
        (("=1",), ["expected a path and a value, such as base.steps=100  @ --set =1"]),
        (("a..b=1",), ["expected a path and a value, such as base.steps=100  @ --set a..b=1"]),
        (
            ("base.wdith=9",),
            ["Toy has no parameter 'wdith' (did you mean width?)  @ --set base.wdith=9"],
        ),
        (("base.width=x",), ["expected a whole number, got 'x'  @ --set base.width=x"]),
        (
            ("base.width=1", "grid.lr=[1, x]"),
            ["expected a number, got 'x'  @ --set grid.lr=[1, x]"],
        ),
        (
            ("base.lr=1",),
            [
                "lr is swept here and also in base (--set base.lr=1): choose one place  "
                "@ line 3, column 8, $.grid.lr"
            ],
        ),
        (
            ("grid.lr=[1",),
            [
                "not YAML: while parsing a flow sequence: expected ',' or ']', but got "
                "'<stream end>'  @ --set grid.lr=[1",
                "expected a list of values, got null  @ --set grid.lr=[1",
            ],
        ),
        (("name.x=1",), ["$.name is no mapping: x cannot be set in it  @ --set name.x=1"]),
        (
            ("seeds=1", "seeds=2"),
            ["replaces --set seeds=1: give one of them  @ --set seeds=2"],
        ),
        (
            ("base.heads=1", "base={width: 9}"),
            ["replaces --set base.heads=1: give one of them  @ --set base={width: 9}"],
        ),
        (
            ("seeds=",),
            ["expected a number of seeds >= 1 or a list of seeds, got null  @ --set seeds="],
        ),
    ],
)
def test_a_bad_override_is_located_at_its_option(
    options: tuple[str, ...], lines: list[str], folder: Path
) -> None:
    """Overrides are validated like the file, and their problems name the option."""
    assert refusal(TOP + "grid: {lr: [1, 2]}\n", options) == lines


def test_problems_of_the_file_come_before_those_of_options(folder: Path) -> None:
    """The file is in its order."""
    lines = refusal(TOP + "seeds: 0\nbase: {width: x}\n", ("base.heads=y", "measure=[z]"))

    places = [line.partition("@ ")[2] for line in lines]
    assert places[:2] == ["line 3, column 8, $.seeds", "line 4, column 15, $.base.width"]
    assert sorted(places[2:]) == ["--set base.heads=y", "--set measure=[z]"]


def test_the_tracking_uri_can_be_read_without_the_task() -> None:
    """A results folder can be tracked where the task's code is not installed."""
    text = "name: a\ntask: not_installed\ntracking: {uri: 'http://x'}\n"

    assert tracking(text) == ("http://x", None)
    assert tracking(text, ["tracking.uri=http://y"]) == ("http://y", None)
    assert tracking(text, ["tracking.experiment=mine"]) == ("http://x", "mine")
    assert tracking(text, ["tracking=none"]) == (None, None)
    assert tracking("name: a\n") == (None, None)


# --- selection


SELECTABLE = TOP + "grid: {width: [4, 8], lr: [0.1, 1.0], kind: [plain]}\nseeds: [0, 5]\n"


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        (
            "seed=5, width=8",
            ["width=8 lr=0.1 kind=plain seed=5", "width=8 lr=1.0 kind=plain seed=5"],
        ),
        ("lr=1,width=4,seed=0", ["width=4 lr=1.0 kind=plain seed=0"]),
        ("kind='plain',lr=1e-1,width=4,seed=0", ["width=4 lr=0.1 kind=plain seed=0"]),
    ],
)
def test_values_select_trials(expression: str, expected: list[str], folder: Path) -> None:
    """Values are read as in the file: 1 selects 1.0, and 1e-1 selects 0.1."""
    sweep = parse(SELECTABLE)

    assert [trial.label(sweep.axes) for trial in sweep.select(expression)] == expected


def test_a_list_value_selects_trials(folder: Path) -> None:
    """A comma inside brackets does not end a value."""
    sweep = parse(TOP + "grid: {pair: [[1, 2], [3, 4]]}\n")

    assert [t.label(["pair"]) for t in sweep.select("pair=[3,4],seed=0")] == ["pair=[3, 4] seed=0"]


def test_the_beginning_of_an_id_selects_its_trial(folder: Path) -> None:
    """Every trial is selected by its id, and by any unambiguous beginning of it."""
    sweep = parse(SELECTABLE)

    for trial in sweep.trials():
        assert sweep.select(trial.trial_id) == [trial]
        assert sweep.select(trial.trial_id[:12].upper()) == [trial]


@pytest.mark.parametrize(
    ("expression", "line"),
    [
        ("seed={a: 1}", "no trial has seed=a mapping; seed is one of 0, 5"),
        ("epochs=3", "'epochs' is not swept; select by width, lr, kind, seed"),
        ("widht=4", "'widht' is not swept; select by width, lr, kind, seed (did you mean width?)"),
        ("lr=0.2", "no trial has lr=0.2; lr is one of 0.1, 1.0"),
        ("seed=1", "no trial has seed=1; seed is one of 0, 5"),
        ("seed=true", "no trial has seed=true; seed is one of 0, 5"),
        ("kind=[", "no trial has kind=[; kind is one of plain"),
        ("seed=0,seed=5", "seed is given twice"),
        ("", "expected the beginning of a trial id, or values such as width=..."),
        ("hello", "expected the beginning of a trial id, or values such as width=..."),
        ("0" * 16, f"no trial id begins with {'0' * 16}; select by values such as width=..."),
    ],
)
def test_a_selection_of_nothing_says_what_there_is(
    expression: str, line: str, folder: Path
) -> None:
    """What can be selected stands in the message."""
    with pytest.raises(SweepError) as refused:
        parse(SELECTABLE).select(expression)

    assert str(refused.value) == f"--only {expression}: 1 problem\n  {line}"


def test_a_combination_that_is_not_in_the_sweep_is_refused(folder: Path) -> None:
    """Each value occurs, but not with the other."""
    sweep = parse(TOP + "zip: {width: [4, 8], lr: [1, 2]}\n")

    with pytest.raises(SweepError) as refused:
        sweep.select("width=4,lr=2")
    assert str(refused.value) == (
        "--only width=4,lr=2: 1 problem\n"
        "  no trial has all of width=4,lr=2: this combination is not in the sweep"
    )


def test_an_ambiguous_id_lists_the_trials(folder: Path) -> None:
    """At most five, with their values."""
    sweep = parse(TOP + "seeds: 200\n")
    found = [trial for trial in sweep.trials() if trial.trial_id.startswith("a")]

    with pytest.raises(SweepError) as refused:
        sweep.select("a")
    listed = "; ".join(f"{trial.trial_id} seed={trial.seed}" for trial in found[:5])
    assert len(found) > 5
    assert str(refused.value) == (
        f"--only a: 1 problem\n  {len(found)} trial ids begin with a: {listed}; "
        f"and {len(found) - 5} more"
    )


# --- files


def test_a_task_by_path_is_found_beside_the_file_first(folder: Path) -> None:
    """The sweep file's folder goes before the working directory."""
    (folder / "sweeps").mkdir()
    (folder / "sweeps" / "toy.py").write_text(TOY + "class Mine(Toy): ...\n\nToy = Mine\n")
    (folder / "sweeps" / "s.yaml").write_text(TOP)
    here = load("sweeps/s.yaml")
    (folder / "sweeps" / "toy.py").unlink()
    there = load("sweeps/s.yaml")

    assert (here.task, here.task_name) == (f"{folder}/sweeps/toy.py:Toy", "Mine")
    assert (there.task, there.task_name) == (f"{folder}/toy.py:Toy", "Toy")
    assert (here.source, here.base) == ("sweeps/s.yaml", folder / "sweeps")


def test_a_task_that_is_not_there_is_a_problem_of_the_file(folder: Path) -> None:
    """The other problems of the file are reported all the same."""
    lines = refusal("name: a\ntask: lost.py:Toy\nseeds: 0\nbase: {anything: 1}\n")
    assert lines == [
        f"no file lost.py in {folder}  @ line 2, column 7, $.task",
        "expected a number of seeds >= 1 or a list of seeds, got 0  @ line 3, column 8, $.seeds",
    ]
    assert refusal("name: a\ntask: ~nobody-of-this-name/toy.py:Toy\n") == [
        "there is no home folder for '~nobody-of-this-name/toy.py'  @ line 2, column 7, $.task",
        f"no file ~nobody-of-this-name/toy.py in {folder}  @ line 2, column 7, $.task",
    ]
    assert refusal("name: a\ntask: modular_adition\n") == [
        "unknown task 'modular_adition' (did you mean modular_addition?); available: "
        f"{', '.join(sorted(available()))}; a task of your own is written "
        "path/to/file.py:Class  "
        "@ line 2, column 7, $.task"
    ]


def test_a_file_that_cannot_be_read_says_why(folder: Path) -> None:
    """Missing, a folder, not UTF-8, endless: one line each, no traceback."""
    (folder / "latin.yaml").write_bytes("name: toy\ntask: Übung\n".encode("latin-1"))
    messages = {}
    for path in ("gone.yaml", ".", "latin.yaml", "/dev/zero", "a\0b"):
        with pytest.raises(SweepError) as refused:
            load(path)
        messages[path] = str(refused.value)

    assert messages == {
        "gone.yaml": "gone.yaml: 1 problem\n  cannot be read: No such file or directory",
        ".": ".: 1 problem\n  cannot be read: Is a directory",
        "latin.yaml": "latin.yaml: 1 problem\n  not UTF-8: the byte 0xdc  @ line 2, column 7",
        "/dev/zero": "/dev/zero: 1 problem\n  longer than 4,194,304 bytes: not a sweep file",
        "a\0b": "a\0b: 1 problem\n  cannot be read: embedded null byte",
    }


def test_a_byte_order_mark_is_no_problem(folder: Path) -> None:
    """Some editors write one."""
    (folder / "s.yaml").write_bytes(b"\xef\xbb\xbf" + TOP.encode())

    assert load("s.yaml").name == "toy"


# --- scale


def test_a_hundred_thousand_trials_are_not_kept(folder: Path) -> None:
    """Trials are made one by one: loading them all takes no memory for each."""
    tracemalloc.start()
    sweep = parse(TOP + "grid: {width: [4, 8]}\nseeds: 50000\n")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert sweep.num_trials == 100_000
    assert peak < 10e6  # bytes; 100,000 trials would take a hundred each at the very least


def test_only_configurations_are_validated(folder: Path) -> None:
    """The work of validation does not grow with the number of seeds."""
    text = TOY.replace("        if self.width", "        CHECKED.append(0)\n        if self.width")
    (folder / "counting.py").write_text("CHECKED = []\n" + text)
    sweep = parse("name: a\ntask: counting.py:Toy\ngrid: {width: [4, 8, 16]}\nseeds: 1000\n")
    checked: list[int] = __import__("sys").modules[sweep.task_class.__module__].CHECKED
    after_loading = len(checked)
    number = sum(1 for _ in sweep.trials())

    assert (number, after_loading, len(checked)) == (3000, 6, 6)  # each value, then each point


# --- the schema


def yaml(text: str) -> Any:
    return ruamel.yaml.YAML(typ="safe", pure=True).load(text)


@pytest.mark.parametrize("path", sorted((ROOT / "sweeps").glob("*.yaml")), ids=lambda p: p.name)
def test_every_sweep_file_loads_and_fits_the_schema(path: Path) -> None:
    """What is in the repository is an example of what is accepted."""
    jsonschema.validate(yaml(path.read_text()), schema(), jsonschema.Draft202012Validator)

    assert load(path).num_trials > 0


@pytest.mark.parametrize(
    "text",
    [
        "sedes: 3",
        "base: {weight_deccay: 1}",
        "base: {modulus: 1}",
        "grid: {modulus: 31}",
        "grid: {modulus: []}",
        "grid: [{modulos: [31]}]",
        "zip: {lr: [-1]}",
        "exclude: [{weight_deccay: 1}]",
        "measure: [rank]",
        "measure: {groups: [rank]}",
        "measure: {vector: 1}",
        "measure: {groups: [agreement], vectors: 0}",
        "measure: {groups: [agreement], keep: first}",
        "measure: {workspace: 1 TB}",
        "measure: {groups: [pruned], pruned: {fractions: [1.0]}}",
        "snapshots: {evry: 1}",
        "snapshots: {}",
        "seeds: 0",
        "tracking: off",
        "resources: {gpu: 1}",
        "name: Grokking",
    ],
)
def test_the_schema_refuses_what_the_loader_refuses(text: str) -> None:
    """An editor underlines a misspelt name, a wrong type and a value out of range."""
    document = {"name": "a", "task": "modular_addition", **yaml(text)}

    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, schema(), jsonschema.Draft202012Validator)
    with pytest.raises(SweepError):
        parse("".join(f"{key}: {json.dumps(value)}\n" for key, value in document.items()))


def test_the_schema_is_a_schema_and_accepts_a_task_by_path() -> None:
    """Parameters of a task that is not registered are the task's affair."""
    jsonschema.Draft202012Validator.check_schema(schema())
    document = {"name": "a", "task": "toy.py:Toy", "base": {"anything": 1}}
    jsonschema.validate(document, schema(), jsonschema.Draft202012Validator)
