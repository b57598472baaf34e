# ruff: noqa: E501 (the messages stand in full)
"""The field `measure`: what it means, what it is refused with, and what a trial's identity has of it."""

from __future__ import annotations

import hashlib
import itertools
import json
import pickle
import re
from pathlib import Path

import jsonschema
import pytest

import spectral
from orchestrator.driver import Options, run_sweep
from orchestrator.errors import SweepError
from orchestrator.measure import OPTIONS, USE_VECTORS, Measure
from orchestrator.measure_field import bytes_of
from orchestrator.schedules import Schedule
from orchestrator.sweep import Trial, parse, schema
from orchestrator.sweep_schema import FIELDS

TOP = "name: toy\ntask: modular_addition\n"  # the line of a case's field is line 3


def trial(measure: str, more: str = "") -> Trial:
    return next(parse(f"{TOP}measure: {measure}\n{more}").trials())


def trial_id(measure: str, more: str = "") -> str:
    return trial(measure, more).trial_id


# --- what it means --------------------------------------------------------------------------


def test_a_list_of_groups_is_all_of_their_defaults() -> None:
    """The list and the mapping without options mean the same, in any order."""
    assert trial("[spectrum, ranks]").measure == Measure(("ranks", "spectrum"))
    assert trial("{groups: [spectrum, ranks]}").measure == Measure(("ranks", "spectrum"))
    assert trial("{views: [decoder]}").measure.groups == ("ranks", "spectrum")


def test_every_option_is_read() -> None:
    """Sorted where order means nothing, in the types that a worker computes with."""
    text = """
  groups: [pruned, alignment, agreement]
  vectors: 7
  views: ["layers.*", decoder]
  residual: true
  heads: true
  keep: final
  workspace: 256 MB
  pruned: {fractions: [0.9, 0.25], last: included, every: 500}
"""
    expected = Measure(
        groups=("agreement", "alignment", "pruned"),
        vectors=7,
        views=("decoder", "layers.*"),
        residual=True,
        heads=True,
        fractions=(0.25, 0.9),
        exempt_last=False,
        pruned=Schedule(every=500),
        keep="final",
        workspace=256_000_000,
    )

    assert trial(text).measure == expected


def test_a_measure_can_be_sent_to_a_worker_and_hashed() -> None:
    """It travels without the places in the file, which name the whole document."""
    sent = trial("{groups: [pruned], pruned: {at: [5]}}")
    back = pickle.loads(pickle.dumps(sent))

    assert back == sent
    assert hash(back.measure) == hash(sent.measure)
    assert sent.measure.places["groups:pruned"].path == "$.measure.groups[0]"
    assert back.measure.places == {}
    assert sent.measure.pruned is not None
    assert sent.measure.pruned.place is not None
    assert back.measure.pruned.place is None


@pytest.mark.parametrize(
    ("patterns", "chosen"),
    [
        ("[decoder]", ["decoder"]),
        ("['*']", ["decoder", "layers.0.query", "layers.0.query[0]", "layers.1.query[0]"]),
        ("['layers.*.query[0]']", ["layers.0.query[0]", "layers.1.query[0]"]),
        ("['layers.?.query']", ["layers.0.query"]),
        ("['Decoder']", []),
        ("[decoder, 'layers.1.*']", ["decoder", "layers.1.query[0]"]),
    ],
)
def test_patterns_choose_views_and_brackets_are_brackets(patterns: str, chosen: list[str]) -> None:
    """To fnmatch, query[0] would be the letters query and a 0."""
    names = ["decoder", "layers.0.query", "layers.0.query[0]", "layers.1.query[0]"]
    measure = trial(f"{{views: {patterns}}}").measure

    assert [name for name in names if measure.chooses(name)] == chosen


def test_vectors_are_a_hundred_or_as_many_as_there_are() -> None:
    """No matrix has more singular vectors than its smaller side."""
    assert [Measure(("agreement",)).num_vectors(rank) for rank in (3, 100, 512)] == [3, 100, 100]
    assert [Measure((), vectors=7).num_vectors(rank) for rank in (3, 100)] == [3, 7]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 kB", 1000),
        ("256 MB", 256_000_000),
        ("256MB", 256_000_000),
        ("1.5 GB", 1_500_000_000),
        ("2 MiB", 2 * 1024**2),
        ("0.5 GiB", 512 * 1024**2),
        ("5 TB", None),
        ("-1 MB", None),
        ("MB", None),
        ("5 mb", None),
        ("9223372036854775.807 kB", 2**63 - 1),
        ("9223372036854775.808 kB", None),
        ("9" * 400 + " MB", None),
        ("1." + "9" * 400 + " kB", 2000),
    ],
)
def test_bytes_may_have_a_unit(text: str, expected: int | None) -> None:
    """Thousands and 1024s are told apart, and nothing is guessed."""
    assert bytes_of(text) == expected


def test_places_in_the_file_are_no_part_of_what_is_measured() -> None:
    """The same measurements elsewhere in a file are equal, also as keys and in their text."""
    here, there = (trial(text).measure for text in ("[ranks]", "\n  groups:\n    - ranks"))

    assert here.places["groups:ranks"].line == 3
    assert there.places["groups:ranks"].line == 5
    assert (here, hash(here), repr(here)) == (there, hash(there), repr(there))


# --- when pruned models are evaluated --------------------------------------------------------


@pytest.mark.parametrize("count", range(1, 40))
def test_pruned_models_are_evaluated_at_ten_snapshots_at_most(count: int) -> None:
    """The first and the last are among them, and the others are evenly apart by rank."""
    snapshots = [n**2 for n in range(count)]
    _, pruned = Measure(("pruned",)).steps(snapshots, snapshots[-1])
    ranks = [snapshots.index(step) for step in pruned]
    gaps = {b - a for a, b in itertools.pairwise(ranks)}

    assert len(pruned) == min(10, count)
    assert (ranks[0], ranks[-1]) == (0, count - 1)
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_their_own_schedule_adds_to_the_snapshots() -> None:
    """What is pruned has been decomposed, so each of these steps is a snapshot."""
    found = trial(
        "{groups: [pruned], pruned: {at: [3, 7]}}", "base: {steps: 10}\nsnapshots: {at: [5]}\n"
    )

    assert (found.snapshots, found.pruned) == ((0, 3, 5, 7, 10), (0, 3, 7, 10))
    assert found.evaluations == found.snapshots


def test_without_the_group_nothing_is_pruned() -> None:
    assert trial("[ranks]").pruned == ()


# --- identity -------------------------------------------------------------------------------


def test_the_identity_has_the_options_that_are_not_the_default() -> None:
    """Written out once, for a trial of each form."""
    content = (
        '{"evaluations":[0,5,10],"format":1,"measure":{"fractions":[0.25],"groups":["agreement",'
        f'"pruned"],"keep":"all","pruned":[0,10],"vectors":7}},"method":{spectral.METHOD_VERSION}'
        ',"params":{"steps":10},"parents":[],"seed":0,"snapshots":[0,5,10],'
        '"task":"modular_addition","version":1}'
    )
    measure = "{groups: [pruned, agreement], keep: all, vectors: 7, pruned: {fractions: [0.25], every: 10}}"
    found = trial_id(measure, "base: {steps: 10}\nsnapshots: {at: [5]}\n")

    assert found == hashlib.sha256(content.encode()).hexdigest()[:16]


ALL = "groups: [alignment, agreement, pruned]"


@pytest.mark.parametrize(
    "same",
    [
        "[agreement, alignment, pruned]",
        f"{{{ALL}}}",
        f"{{{ALL}, workspace: 1 MB}}",
        f"{{{ALL}, workspace: 5}}",
        f"{{{ALL}, vectors: 100, residual: false, heads: false, keep: none}}",
        f"{{{ALL}, pruned: {{fractions: [0.5], last: exempt}}}}",
        f"{{{ALL}, pruned: {{at: [0, 100, 200, 300, 400, 500, 600, 700, 800, 1000]}}}}",
    ],
)
def test_stated_defaults_do_not_change_the_identity(same: str) -> None:
    """Nor does the memory that may be used, which changes no number."""
    every = "snapshots: {at: [100, 200, 300, 400, 500, 600, 700, 800]}\n"

    assert trial_id(same, every) == trial_id("[alignment, agreement, pruned]", every)


def test_options_change_the_identity() -> None:
    """Each of these measures something else, so no two share one."""
    different = [
        "[agreement, alignment, pruned]",
        "[agreement, alignment]",
        f"{{{ALL}, vectors: 10}}",
        f"{{{ALL}, views: [decoder]}}",
        f"{{{ALL}, views: [decoder, embedding]}}",
        f"{{{ALL}, residual: true}}",
        f"{{{ALL}, heads: true}}",
        f"{{{ALL}, residual: true, heads: true}}",
        f"{{{ALL}, keep: final}}",
        f"{{{ALL}, keep: all}}",
        f"{{{ALL}, pruned: {{last: included}}}}",
        f"{{{ALL}, pruned: {{fractions: [0.4]}}}}",
        f"{{{ALL}, pruned: {{every: 1000}}}}",
    ]

    assert len({trial_id(each) for each in different}) == len(different)


def test_the_words_of_a_schedule_do_not_change_the_identity() -> None:
    """Steps are hashed: snapshots at the steps of pruning are the same, whoever names them."""
    steps = "base: {steps: 10}\nsnapshots: "
    own = "{groups: [pruned], pruned: {every: 5}}"

    assert trial_id(own, steps + "{at: [5]}\n") == trial_id("[pruned]", steps + "{every: 5}\n")
    assert trial_id(own, steps + "{at: [10]}\n") == trial_id("[pruned]", steps + "{every: 5}\n")
    assert trial_id(own, steps + "{at: [4]}\n") != trial_id("[pruned]", steps + "{at: [4, 5]}\n")


# --- what it is refused with ----------------------------------------------------------------

REFUSED = """
=== no list and no mapping
measure: ranks
=>
expected a list of measurements, or a mapping of groups, vectors, views, residual, heads, keep, workspace and pruned, got 'ranks': write [ranks]  @ line 3, column 10, $.measure

=== names that are not there
measure: {group: [ranks], groups: [rank], view: []}
=>
unknown field 'group' (did you mean groups?): one of groups, vectors, views, residual, heads, keep, workspace, pruned  @ line 3, column 11, $.measure.group
unknown measurement 'rank' (did you mean ranks?): one of ranks, spectrum, alignment, agreement, pruned, update, operator  @ line 3, column 36, $.measure.groups[0]
unknown field 'view' (did you mean views?): one of groups, vectors, views, residual, heads, keep, workspace, pruned  @ line 3, column 43, $.measure.view

=== values out of range, all at once
measure: {groups: [agreement, pruned], vectors: 0, views: [], keep: al, residual: 1, workspace: 5 TB, pruned: {fractions: [0, 1.0, 0.5, 0.50, x, true], last: no}}
=>
expected a whole number >= 1, got 0  @ line 3, column 49, $.measure.vectors
expected a list of at least one pattern of view names, got an empty list  @ line 3, column 59, $.measure.views
expected none, final or all, got 'al' (did you mean all?)  @ line 3, column 69, $.measure.keep
expected true or false, got 1  @ line 3, column 83, $.measure.residual
expected a number of bytes >= 1, or one with a unit of kB, MB, GB, MiB or GiB, like 256 MB, got '5 TB'  @ line 3, column 97, $.measure.workspace
expected a number above 0 and below 1, got 0  @ line 3, column 124, $.measure.pruned.fractions[0]
expected a number above 0 and below 1, got 1.0  @ line 3, column 127, $.measure.pruned.fractions[1]
repeated fraction: 0.5 also stands at $.measure.pruned.fractions[2]  @ line 3, column 137, $.measure.pruned.fractions[3]
expected a number above 0 and below 1, got 'x'  @ line 3, column 143, $.measure.pruned.fractions[4]
expected a number above 0 and below 1, got true  @ line 3, column 146, $.measure.pruned.fractions[5]
expected exempt or included, got 'no'  @ line 3, column 159, $.measure.pruned.last

=== other types
measure: {groups: ranks, vectors: many, views: decoder, keep: true, workspace: 0, pruned: 5}
=>
expected a list of at least one measurement, got 'ranks': write [ranks]  @ line 3, column 19, $.measure.groups
expected a whole number >= 1, got 'many'  @ line 3, column 35, $.measure.vectors
expected a list of at least one pattern of view names, got 'decoder': write [decoder]  @ line 3, column 48, $.measure.views
expected none, final or all, got true  @ line 3, column 63, $.measure.keep
expected a number of bytes >= 1, or one with a unit of kB, MB, GB, MiB or GiB, like 256 MB, got 0  @ line 3, column 80, $.measure.workspace
expected a mapping of fractions, last, and one of every, log_spaced and at, got 5  @ line 3, column 91, $.measure.pruned

=== patterns
measure: {views: [5, a, a]}
=>
expected a pattern, got 5; put it in quotes  @ line 3, column 19, $.measure.views[0]
repeated pattern: 'a' also stands at $.measure.views[1]  @ line 3, column 25, $.measure.views[2]

=== options that change nothing
measure: {vectors: 5, residual: true, keep: all, pruned: {every: 5}}
=>
vectors has no effect without singular vectors: add alignment, agreement or update to groups  @ line 3, column 20, $.measure.vectors
residual has no effect without couplings: add alignment to groups  @ line 3, column 33, $.measure.residual
keep has no effect without singular vectors: add alignment, agreement or update to groups  @ line 3, column 45, $.measure.keep
its options have no effect without the measurement: add pruned to groups  @ line 3, column 58, $.measure.pruned

=== heads without couplings
measure: {groups: [agreement], heads: true}
=>
heads has no effect without couplings: add alignment to groups  @ line 3, column 39, $.measure.heads

=== heads that are no switch
measure: {groups: [alignment], heads: 4}
=>
expected true or false, got 4  @ line 3, column 39, $.measure.heads

=== a text where a list belongs
measure: {groups: "no such", views: "layers.*"}
=>
expected a list of at least one measurement, got 'no such': write ["no such"]  @ line 3, column 19, $.measure.groups
expected a list of at least one pattern of view names, got 'layers.*': write ["layers.*"]  @ line 3, column 37, $.measure.views

=== views of what cuts every matrix
measure: {groups: [pruned], views: [decoder]}
=>
views has no effect on pruned models, of which every matrix is cut: add another measurement to groups  @ line 3, column 36, $.measure.views

=== more bytes than can be addressed
measure: {workspace: 9223372036.854775808 GB}
=>
expected a number of bytes >= 1, or one with a unit of kB, MB, GB, MiB or GiB, like 256 MB, got '9223372036.854775808 GB'  @ line 3, column 22, $.measure.workspace

=== schedules of pruning
measure: {groups: [pruned], pruned: {every: 5, at: [1], evry: 1}}
=>
unknown field 'evry' (did you mean every?): one of fractions, last, every, log_spaced, at  @ line 3, column 57, $.measure.pruned.evry

=== steps of pruning
measure: {groups: [pruned], pruned: {at: [0, 5, 1001]}}
=>
step 1001 is after the last step, 1000  @ line 3, column 49, $.measure.pruned.at[2]
"""


def cases() -> dict[str, tuple[str, list[str]]]:
    found = {}
    for entry in REFUSED.split("=== ")[1:]:
        text, _, message = entry.partition("=>\n")
        title, _, text = text.partition("\n")
        found[title] = (TOP + text, message.strip().split("\n"))
    return found


CASES = cases()


@pytest.mark.parametrize("case", CASES)
def test_a_bad_measure_is_refused_with_every_problem_in_full(case: str) -> None:
    """What we got, what we accept, and where it stands."""
    text, lines = CASES[case]

    with pytest.raises(SweepError) as refused:
        parse(text)

    assert str(refused.value).split("\n")[1:] == [f"  {line}" for line in lines]


def test_a_size_of_four_hundred_digits_is_refused_in_one_line() -> None:
    """It neither overflows nor fills the screen."""
    with pytest.raises(SweepError) as refused:
        parse(f"{TOP}measure: {{workspace: {'9' * 400} MB}}\n")

    assert str(refused.value).split("\n")[1] == (
        "  expected a number of bytes >= 1, or one with a unit of kB, MB, GB, MiB or GiB, like "
        f"256 MB, got '{'9' * 56}...  @ line 3, column 22, $.measure.workspace"
    )


def test_views_beside_pruned_models_choose_what_else_is_measured() -> None:
    """Twin of the case where nothing else is."""
    assert trial("{groups: [pruned, ranks], views: [decoder]}").measure.views == ("decoder",)


def test_a_misspelt_group_does_not_make_its_options_look_idle() -> None:
    """Twin of the case above: with the group written right there is no problem at all."""
    with pytest.raises(SweepError) as refused:
        parse(TOP + "measure: {groups: [agrement], vectors: 5}\n")

    assert len(refused.value.problems) == 1
    assert parse(TOP + "measure: {groups: [agreement], vectors: 5}\n").measure.vectors == 5


# --- the examples of the manual ---------------------------------------------------------------

MANUAL = Path(__file__).parents[2] / "docs" / "sweep-files.md"
EXAMPLES = [
    block for block in re.findall(r"```yaml\n(.*?)```", MANUAL.read_text("utf-8"), re.DOTALL)
    if block.startswith("name:") and "\nmeasure:" in block
]  # fmt: skip


@pytest.mark.parametrize("text", EXAMPLES, ids=[text.split()[1] for text in EXAMPLES])
def test_examples_of_the_manual_measure_what_they_say(text: str, tmp_path: Path) -> None:
    """Six steps of one trial: an option that fits no matrix shows only when something is measured."""
    overrides = ["base.steps=6", "seeds=1", "tracking=none", f"storage={tmp_path}"]
    sweep = parse(text, overrides=overrides)
    outcome = run_sweep(sweep, Options(in_process=True, only=[next(sweep.trials())]))

    assert outcome.statuses == {"completed": 1}


def test_the_manual_has_examples_of_measurements() -> None:
    """Twin: if its blocks looked otherwise, nothing would be run above."""
    assert len(EXAMPLES) >= 2


# --- the schema -----------------------------------------------------------------------------


def test_the_schema_knows_every_option_and_the_groups_of_the_code() -> None:
    """An editor completes what the loader reads."""
    groups, options = schema()["properties"]["measure"]["anyOf"]

    assert tuple(options["properties"]) == (
        "groups",
        "vectors",
        "views",
        "residual",
        "heads",
        "keep",
        "workspace",
        "pruned",
    )
    assert set(options["properties"]) == set(OPTIONS)
    assert groups["items"]["enum"] == list(spectral.MEASUREMENTS)
    assert options["properties"]["groups"]["items"]["enum"] == list(spectral.MEASUREMENTS)
    assert set(USE_VECTORS) <= set(spectral.MEASUREMENTS)
    assert FIELDS["measure"]["anyOf"][0]["items"] == {}, "the table itself is left as it was"


@pytest.mark.parametrize(
    "measure",
    [
        ["ranks"],
        {"groups": ["agreement"], "vectors": 5, "keep": "all", "workspace": "1.5 GiB"},
        {"groups": ["pruned"], "pruned": {"fractions": [0.1, 0.5], "last": "exempt", "at": [5]}},
    ],
)
def test_the_schema_accepts_what_the_loader_accepts(measure: object) -> None:
    document = {"name": "a", "task": "modular_addition", "measure": measure}

    jsonschema.validate(document, schema(), jsonschema.Draft202012Validator)
    parse("".join(f"{key}: {json.dumps(value)}\n" for key, value in document.items()))
