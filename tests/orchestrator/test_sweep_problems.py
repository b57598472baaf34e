# ruff: noqa: E501 (the messages stand in full)
"""Every message of the sweep-file loader, in full: what was wrong, and the exact lines shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import SweepError
from orchestrator.sweep import parse

TOY = """
from enum import Enum
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from tasks import Task, TrainingConfig


class Level(Enum):
    LOW = "low"
    HIGH = "high"


class ToyConfig(TrainingConfig):
    width: Annotated[int, Field(ge=1, le=64)] = 8
    heads: int = 2
    rate: Annotated[float, Field(gt=0, lt=1)] = 0.5
    kind: Literal["plain", "deep"] = "plain"
    label: str = "none"
    flag: bool = False
    pair: tuple[int, int] = (1, 2)
    scale: float | Literal["auto"] = "auto"
    limit: Annotated[int, Field(ge=1)] | None = None
    even: Annotated[int, Field(multiple_of=2)] = 2
    code: Annotated[str, Field(pattern="^[a-z]+$", min_length=2, max_length=3)] = "ab"
    names: Annotated[list[str], Field(min_length=1, max_length=2)] = ["a"]
    level: Level = Level.LOW
    nothing: None = None
    odd: int = 1
    parts: frozenset[int] = frozenset()

    @field_validator("odd")
    @classmethod
    def _is_odd(cls, value):
        if value % 2 == 0:
            raise ValueError(f"{value} is even, which odd cannot be")
        return value

    @model_validator(mode="after")
    def _heads_fit(self):
        if self.width % self.heads:
            raise ValueError(f"width ({self.width}) is not divisible by heads ({self.heads})")
        return self


class Toy(Task):
    Config = ToyConfig

    def build(self, streams): ...
    def batch(self, streams, step, micro): ...
    def loss(self, forward, batch): ...
    def eval_data(self, streams, split): ...
    def evaluate(self, forward, data): ...


class NeedyConfig(TrainingConfig):
    depth: Annotated[int, Field(description="number of layers")]
    status: int = 0


class Needy(Toy):
    Config = NeedyConfig
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds a task of its own."""
    path = tmp_path_factory.mktemp("toy")
    (path / "toy.py").write_text(TOY)
    return path


TOP = "name: toy\ntask: toy.py:Toy\n"  # stands before the text of a case: its first line is line 3
KNOWN = (
    "one of name, task, base, grid, zip, exclude, seeds, snapshots, evaluations, measure, "
    "resources, tracking, storage, data, checkpoint_seconds"
)

# --- YAML that cannot be read, or that is more than the core of YAML 1.2
FILE = r"""
=== only a comment (whole file)
# nothing yet
=>
expected a mapping with the fields of a sweep, got nothing

=== a list (whole file)
- name: toy
=>
expected a mapping with the fields of a sweep, got a list  @ line 1, column 1, $

=== a text (whole file)
grokking
=>
expected a mapping with the fields of a sweep, got 'grokking'  @ line 1, column 1, $

=== flow mapping not closed (whole file)
name: toy
base: {width: 8
=>
not YAML: while parsing a flow mapping: expected ',' or '}', but got '<stream end>'  @ line 3, column 1, $

=== colon in a value (whole file)
name: toy
task: a: b
=>
not YAML: mapping values are not allowed here  @ line 2, column 8, $

=== quote not closed (whole file)
name: 'toy
=>
not YAML: while scanning a quoted scalar: found unexpected end of stream  @ line 2, column 1, $

=== escape beyond Unicode (whole file)
name: "\UFFFFFFFF"
=>
not YAML: an escape such as \U00110000 that is no character

=== second document (whole file)
name: toy
---
name: toy
=>
expected one document, got a second one after '---'  @ line 2, column 1, $

=== YAML 1.1 (whole file)
%YAML 1.1
---
name: toy
task: toy.py:Toy
=>
only YAML 1.2 is read: drop the %YAML  @ line 2, column 1, $

=== repeated key
seeds: 1
base: {width: 8}
seeds: 2
=>
repeated key 'seeds', first in line 3  @ line 5, column 1, $.seeds

=== repeated key inside
base:
  width: 8
  width: 16
=>
repeated key 'width', first in line 4  @ line 5, column 3, $.base.width

=== python tag
base: !!python/object/apply:os.system [ls]
=>
tags are not read, got !!python/object/apply:os.system: write a plain value  @ line 3, column 7, $.base

=== own tag
base: {width: !foo 8}
=>
tags are not read, got !foo: write a plain value  @ line 3, column 15, $.base.width

=== binary
base: {label: !!binary aGVsbG8=}
=>
tags are not read, got !!binary: write a plain value  @ line 3, column 15, $.base.label

=== alias
base: &all {width: 8}
exclude: [*all]
=>
anchors (&) and aliases (*) are not read: write the value out  @ line 3, column 7, $.base

=== alias bomb
base:
  a: &a [x, x, x, x]
  b: &b [*a, *a, *a, *a]
  c: &c [*b, *b, *b, *b]
=>
anchors (&) and aliases (*) are not read: write the value out  @ line 4, column 6, $.base.a

=== alias without anchor
base: *nothing
=>
anchors (&) and aliases (*) are not read: write the value out  @ line 3, column 7, $.base

=== merge key
base: {<<: {width: 8}}
=>
merge keys (<<) are not read: write the entries out  @ line 3, column 8, $.base['<<']

=== keys that are no text
base: {1: 2, true: 3, null: 4, 1.5: 5, [a]: 6}
=>
expected a name as key, got 1  @ line 3, column 8, $.base
expected a name as key, got true  @ line 3, column 14, $.base
expected a name as key, got null  @ line 3, column 23, $.base
expected a name as key, got 1.5  @ line 3, column 32, $.base
expected a name as key, got a list  @ line 3, column 40, $.base

=== not finite
base: {rate: .nan, scale: -.inf, lr: 1e999}
=>
expected a finite number, got .nan  @ line 3, column 14, $.base.rate
expected a finite number, got -.inf  @ line 3, column 27, $.base.scale
expected a finite number, got 1e999  @ line 3, column 38, $.base.lr

=== NUL
storage: "a\0b"
=>
expected a text without NUL and half characters  @ line 3, column 10, $.storage

"""

# --- fields of the sweep
FIELDS = r"""
=== missing fields (whole file)
seeds: 1
=>
missing field 'name': a-z, 0-9, _ and -; results lie in <storage>/<name>  @ line 1, column 1, $
missing field 'task': a registered name, an entry point, or path/to/file.py:Class  @ line 1, column 1, $

=== unknown field
sedes: 1
bogus: 2
=>
unknown field 'sedes' (did you mean seeds?)  @ line 3, column 1, $.sedes
unknown field 'bogus': {KNOWN}  @ line 4, column 1, $.bogus

=== parameter at the top
width: 8
=>
unknown field 'width': it is a parameter of Toy, put it in base  @ line 3, column 1, $.width

=== search
search: {sampler: tpe}
=>
search is not available yet: sweep with grid or zip  @ line 3, column 1, $.search

=== name with a slash (whole file)
name: ../toy
task: toy.py:Toy
=>
expected a name of at most 100 characters a-z, 0-9, _ and -, got '../toy'  @ line 1, column 7, $.name

=== name with capitals (whole file)
name: Toy
task: toy.py:Toy
=>
expected a name of at most 100 characters a-z, 0-9, _ and -, got 'Toy'  @ line 1, column 7, $.name

=== name with a line break (whole file)
name: "toy\n"
task: toy.py:Toy
=>
expected a name of at most 100 characters a-z, 0-9, _ and -, got 'toy\n'  @ line 1, column 7, $.name

=== name that is a number (whole file)
name: 2024
task: toy.py:Toy
=>
expected a name of at most 100 characters a-z, 0-9, _ and -, got 2024; put it in quotes  @ line 1, column 7, $.name

=== name that is nothing (whole file)
name:
task: toy.py:Toy
=>
expected a name of at most 100 characters a-z, 0-9, _ and -, got null  @ line 1, column 1, $.name

=== task that is a list (whole file)
name: toy
task: [toy.py:Toy]
=>
expected a task, got a list  @ line 2, column 7, $.task

=== reserved parameter (whole file)
name: toy
task: toy.py:Needy
base: {depth: 1}
=>
Needy has a parameter 'status', a column of the trials table: rename it  @ line 2, column 7, $.task

=== missing parameter (whole file)
name: toy
task: toy.py:Needy
base: {lr: 0.1}
=>
Needy has a parameter 'status', a column of the trials table: rename it  @ line 2, column 7, $.task
missing parameter 'depth': number of layers  @ line 3, column 7, $.base

=== seeds 0
seeds: 0
=>
expected a number of seeds >= 1 or a list of seeds, got 0  @ line 3, column 8, $.seeds

=== seeds a text
seeds: three
=>
expected a number of seeds >= 1 or a list of seeds, got 'three'  @ line 3, column 8, $.seeds

=== seeds true
seeds: true
=>
expected a number of seeds >= 1 or a list of seeds, got true  @ line 3, column 8, $.seeds

=== seeds empty
seeds: []
=>
expected at least one seed, got an empty list  @ line 3, column 8, $.seeds

=== seeds nothing
seeds:
=>
expected a number of seeds >= 1 or a list of seeds, got null  @ line 3, column 1, $.seeds

=== seeds repeated, negative, ill-typed
seeds: [1, 0, 1, -1, 0.5, true, {a: 1}]
=>
repeated seed: 1 also stands at $.seeds[0]  @ line 3, column 15, $.seeds[2]
expected a whole number >= 0, got -1  @ line 3, column 18, $.seeds[3]
expected a whole number >= 0, got 0.5  @ line 3, column 22, $.seeds[4]
expected a whole number >= 0, got true  @ line 3, column 27, $.seeds[5]
expected a whole number >= 0, got a mapping  @ line 3, column 33, $.seeds[6]

=== seeds too many
seeds: 2000000
=>
2,000,000 seeds, at most 1,000,000  @ line 3, column 8, $.seeds

=== snapshots a number
snapshots: 40
=>
expected every: N, log_spaced: N or at: [steps], or several of them, got 40  @ line 3, column 12, $.snapshots

=== snapshots unknown
snapshots: {evry: 10}
=>
unknown field 'evry' (did you mean every?): one of every, log_spaced, at  @ line 3, column 13, $.snapshots.evry

=== snapshots two, both wrong
snapshots: {every: 0, at: [-1]}
=>
expected a whole number >= 1, got 0  @ line 3, column 20, $.snapshots.every
expected a whole number >= 0, got -1  @ line 3, column 28, $.snapshots.at[0]

=== snapshots none
snapshots: {}
=>
expected every: N, log_spaced: N or at: [steps], or several of them, got nothing  @ line 3, column 12, $.snapshots

=== snapshots every 0
snapshots: {every: 0}
=>
expected a whole number >= 1, got 0  @ line 3, column 20, $.snapshots.every

=== snapshots log_spaced 1
snapshots: {log_spaced: 1}
=>
expected a whole number >= 2, got 1  @ line 3, column 25, $.snapshots.log_spaced

=== snapshots at
base: {steps: 100}
snapshots: {at: [5, 5, -1, x, 101]}
=>
repeated step: 5 also stands at $.snapshots.at[0]  @ line 4, column 21, $.snapshots.at[1]
expected a whole number >= 0, got -1  @ line 4, column 24, $.snapshots.at[2]
expected a whole number >= 0, got 'x'  @ line 4, column 28, $.snapshots.at[3]
step 101 is after the last step, 100  @ line 4, column 31, $.snapshots.at[4]

=== snapshots after the last step
grid: {steps: [200, 100]}
snapshots: {at: [5, 150]}
evaluations: {at: [300]}
=>
step 150 is after the last step, 100  @ line 4, column 21, $.snapshots.at[1]
step 300 is after the last step, 100  @ line 5, column 20, $.evaluations.at[0]

=== snapshots too many
base: {steps: 1000000}
snapshots: {every: 2}
=>
chooses 500,002 of 1,000,000 steps, at most 100,000  @ line 4, column 20, $.snapshots.every

=== measure
measure: [rank, ranks, spectrum, ranks, 5, {a: 1}]
=>
unknown measurement 'rank' (did you mean ranks?): one of ranks, spectrum, alignment, agreement, pruned, update, operator  @ line 3, column 11, $.measure[0]
repeated measurement: 'ranks' also stands at $.measure[1]  @ line 3, column 34, $.measure[3]
unknown measurement 5: one of ranks, spectrum, alignment, agreement, pruned, update, operator  @ line 3, column 41, $.measure[4]
unknown measurement a mapping: one of ranks, spectrum, alignment, agreement, pruned, update, operator  @ line 3, column 44, $.measure[5]

=== measure nothing
measure: []
=>
expected a list of at least one measurement, got an empty list  @ line 3, column 10, $.measure

=== resources
resources: {cpus: auto, gpus: -1, group: 0, memory: 4}
=>
expected a whole number >= 1, got 'auto'  @ line 3, column 19, $.resources.cpus
expected auto, 0, a share of a GPU below 1, or a whole number of GPUs, got -1  @ line 3, column 31, $.resources.gpus
expected auto or a whole number >= 1, got 0  @ line 3, column 42, $.resources.group
unknown field 'memory': one of cpus, gpus, group, custom  @ line 3, column 45, $.resources.memory

=== resources with a share of two GPUs
resources: {cpus: 1.0, gpus: 1.5, group: many}
=>
expected a whole number >= 1, got 1.0  @ line 3, column 19, $.resources.cpus
expected auto, 0, a share of a GPU below 1, or a whole number of GPUs, got 1.5  @ line 3, column 30, $.resources.gpus
expected auto or a whole number >= 1, got 'many'  @ line 3, column 42, $.resources.group

=== custom resources
resources: {custom: {v100: 1.5, GPU: 1, big: many, small: 0, fine: 0.5}}
=>
expected a share below 1 or a whole number >= 1, got 1.5  @ line 3, column 28, $.resources.custom.v100
GPUs are asked for with gpus:  @ line 3, column 38, $.resources.custom.GPU
expected a share below 1 or a whole number >= 1, got 'many'  @ line 3, column 46, $.resources.custom.big
expected a share below 1 or a whole number >= 1, got 0  @ line 3, column 59, $.resources.custom.small

=== resources for a group of several
resources: {group: 4}
=>
groups of several trials are not available yet; use auto or 1  @ line 3, column 20, $.resources.group

=== resources a number
resources: 4
=>
expected a mapping of cpus, gpus, group and custom, got 4  @ line 3, column 12, $.resources

=== tracking
tracking: {uri: 5, experimnt: a}
=>
expected a text, got 5; put it in quotes  @ line 3, column 17, $.tracking.uri
unknown field 'experimnt' (did you mean experiment?): one of uri, experiment  @ line 3, column 20, $.tracking.experimnt

=== tracking null
tracking: null
=>
expected none, or a mapping of uri and experiment, got null  @ line 3, column 1, $.tracking

=== object storage
storage: s3://bucket/results
=>
object storage is not available yet; use a folder, got 's3://bucket/results'  @ line 3, column 10, $.storage

=== storage on another host
storage: file://host/results
=>
object storage is not available yet; use a folder, got 'file://host/results'  @ line 3, column 10, $.storage

=== storage without a home
storage: ~nobody-of-this-name/results
=>
there is no home folder for '~nobody-of-this-name/results'  @ line 3, column 10, $.storage

=== storage a number
storage: 5
=>
expected a folder, got 5; put it in quotes  @ line 3, column 10, $.storage

=== checkpoint_seconds
checkpoint_seconds: -1
=>
expected a number of seconds >= 0, got -1  @ line 3, column 21, $.checkpoint_seconds

=== checkpoint_seconds a text
checkpoint_seconds: 1m
=>
expected a number of seconds >= 0, got '1m'  @ line 3, column 21, $.checkpoint_seconds

"""

# --- parameters, which the task judges
PARAMS = r"""
=== base a list
base: [width]
=>
expected a mapping of parameters to values, got a list  @ line 3, column 7, $.base

=== unknown parameter
base: {weight_deccay: 1, seeds: 3, seed: 0}
=>
Toy has no parameter 'weight_deccay' (did you mean weight_decay?)  @ line 3, column 8, $.base.weight_deccay
Toy has no parameter 'seeds': seeds stands at the top of the file, beside base  @ line 3, column 26, $.base.seeds
Toy has no parameter 'seed': seeds stands at the top of the file, beside base  @ line 3, column 36, $.base.seed

=== nested mapping
base: {label: {a: 1}, pair: [{a: 1}, [1, {b: 2}]]}
=>
expected a number, a text, true, false, null or a list of these, got a mapping  @ line 3, column 15, $.base.label
expected a number, a text, true, false, null or a list of these, got a mapping  @ line 3, column 30, $.base.pair[0]
expected a number, a text, true, false, null or a list of these, got a mapping  @ line 3, column 42, $.base.pair[1][1]

=== ill-typed
base: {width: 8.0, rate: 1e-3x, flag: no, label: 5, kind: depe, pair: 3, scale: big, limit: all}
=>
expected a whole number, got 8.0  @ line 3, column 15, $.base.width
expected a number, got '1e-3x'  @ line 3, column 26, $.base.rate
expected true or false, got 'no'  @ line 3, column 39, $.base.flag
expected a text, got 5  @ line 3, column 50, $.base.label
expected 'plain' or 'deep', got 'depe' (did you mean deep?)  @ line 3, column 59, $.base.kind
expected a list, got 3  @ line 3, column 71, $.base.pair
expected a number or 'auto', got 'big'  @ line 3, column 81, $.base.scale
expected a whole number or null, got 'all'  @ line 3, column 93, $.base.limit

=== a bool is no number
base: {width: true, rate: false, flag: 1}
=>
expected a whole number, got true  @ line 3, column 15, $.base.width
expected a number, got false  @ line 3, column 27, $.base.rate
expected true or false, got 1  @ line 3, column 40, $.base.flag

=== YAML 1.1 spellings are texts
base: {width: 1_000, rate: 1:30, heads: 2026-01-31}
=>
expected a whole number, got '1_000'  @ line 3, column 15, $.base.width
expected a number, got '1:30'  @ line 3, column 28, $.base.rate
expected a whole number, got '2026-01-31'  @ line 3, column 41, $.base.heads

=== out of range
base: {width: 0, rate: 1, limit: 0, steps: 0, lr: -0.1}
=>
expected a number >= 1, got 0  @ line 3, column 15, $.base.width
expected a number < 1.0, got 1  @ line 3, column 24, $.base.rate
expected a number >= 1 or null, got 0  @ line 3, column 34, $.base.limit
expected a number >= 1, got 0  @ line 3, column 44, $.base.steps
expected a number >= 0.0, got -0.1  @ line 3, column 51, $.base.lr

=== too large
base: {width: 65}
=>
expected a number <= 64, got 65  @ line 3, column 15, $.base.width

=== tuples
grid: {pair: [[1], [1, x], [1, 2, 3], [3, 4]]}
=>
expected a longer list, got [1]  @ line 3, column 15, $.grid.pair[0]
expected a whole number, got 'x'  @ line 3, column 24, $.grid.pair[1][1]
expected a list of at most 2 values, got [1, 2, 3]  @ line 3, column 28, $.grid.pair[2]

=== parameters that do not fit
base: {width: 8, heads: 3}
=>
width (8) is not divisible by heads (3)  @ line 3, column 7, $.base

=== one bad base value under a grid
base: {rate: 2}
grid: {width: [2, 4, 6, 8], lr: [0.1, 0.2]}
=>
expected a number < 1.0, got 2  @ line 3, column 14, $.base.rate

=== one bad axis value under a grid
grid: {width: [2, 4, x, 8], lr: [0.1, 0.2, -1]}
=>
expected a whole number, got 'x'  @ line 3, column 22, $.grid.width[2]
expected a number >= 0.0, got -1  @ line 3, column 44, $.grid.lr[2]

=== points that do not fit
grid: {width: [4, 6, 8], heads: [2, 3], lr: [0.1, 0.2]}
=>
width (4) is not divisible by heads (3) (at width=4 heads=3 lr=0.1 and 1 more)  @ line 3, column 7, $.grid
width (8) is not divisible by heads (3) (at width=8 heads=3 lr=0.1 and 1 more)  @ line 3, column 7, $.grid

=== grid a number
grid: 5
=>
expected a mapping of parameters to lists of values, or a list of them, got 5  @ line 3, column 7, $.grid

=== grid nothing
grid:
=>
expected a mapping of parameters to lists of values, or a list of them, got null  @ line 3, column 1, $.grid

=== grid without blocks
grid: []
=>
expected a mapping of parameters to lists of values, or a list of them, got an empty list  @ line 3, column 7, $.grid

=== axes
grid: {width: 8, heads: [], rate: {from: 0}, kind: null, label: deep}
=>
expected a list of values, got 8: write [8]  @ line 3, column 15, $.grid.width
expected a list of values, got an empty list  @ line 3, column 25, $.grid.heads
expected a list of values, got a mapping  @ line 3, column 35, $.grid.rate
expected a list of values, got null  @ line 3, column 46, $.grid.kind
expected a list of values, got 'deep': write ['deep']  @ line 3, column 65, $.grid.label

=== value twice
grid: {lr: [1, 0.5, 1.0]}
=>
the same trial twice: 1.0 also stands at $.grid.lr[0]  @ line 3, column 21, $.grid.lr[2]

=== trial in two blocks
grid:
- {width: [2, 4], heads: [1]}
- {width: [4, 8], heads: [1, 2]}
=>
the same trial twice: width=4 heads=1, also in $.grid[0]  @ line 5, column 3, $.grid[1]

=== default of one block in another
grid:
- {lr: [1e-3, 1e-2]}
- {width: [4, 8]}
=>
the same trial twice: lr=0.001, also in $.grid[0]  @ line 5, column 3, $.grid[1]

=== block a text
grid: [width]
=>
expected a mapping of parameters to lists of values, got 'width'  @ line 3, column 8, $.grid[0]

=== swept and in base
base: {width: 8}
grid: {width: [8, 16]}
zip: {width: [4, 8]}
=>
width is swept here and also in zip (line 5): choose one place  @ line 4, column 8, $.grid.width
width is swept here and also in base (line 3): choose one place  @ line 5, column 7, $.zip.width

=== grid and zip
grid: {width: [8, 16]}
zip: {width: [4, 8]}
=>
width is swept here and also in zip (line 4): choose one place  @ line 3, column 8, $.grid.width

=== zip lengths
zip: {width: [4, 8], lr: [1, 2, 3], heads: [1, 2]}
=>
axes that move together need equally many values: width has 2, lr has 3, heads has 2  @ line 3, column 6, $.zip

=== zip row twice
zip: {width: [4, 8, 4], lr: [1, 2, 1.0]}
=>
the same trial twice: 4 with 1.0 also stands at $.zip.width[0]  @ line 3, column 21, $.zip.width[2]

=== zip a list
zip: [{width: [1]}]
=>
expected a mapping of parameters to lists of values, got a list  @ line 3, column 6, $.zip

=== exclude
grid: {width: [4, 8], lr: [1, 2]}
exclude:
- {width: 5}
- {}
- 5
- {widht: 4}
- {heads: 2}
- {width: {a: 1}}
- {width: 4, lr: 1}
- {width: '8'}
=>
excludes nothing: no combination has these values  @ line 5, column 3, $.exclude[0]
excludes everything: name at least one value  @ line 6, column 3, $.exclude[1]
expected a mapping of swept parameters to values, got 5  @ line 7, column 3, $.exclude[2]
'widht' is not swept (did you mean width?)  @ line 8, column 4, $.exclude[3].widht
'heads' is not swept: swept are width, lr  @ line 9, column 4, $.exclude[4].heads
expected a number, a text, true, false, null or a list of these, got a mapping  @ line 10, column 11, $.exclude[5].width
excludes nothing: no combination has these values  @ line 12, column 3, $.exclude[7]

=== exclude a mapping
grid: {width: [4, 8]}
exclude: {width: 4}
=>
expected a list of mappings of swept parameters to values, got a mapping  @ line 4, column 10, $.exclude

=== exclude without axes
exclude: [{width: 4}]
=>
'width' is not swept: nothing is  @ line 3, column 12, $.exclude[0].width

=== everything excluded
grid: {width: [4, 8]}
exclude: [{width: 4}, {width: 8}]
=>
every combination is excluded  @ line 4, column 11, $.exclude[0]

=== everything at once (whole file)
name: Toy
task: toy.py:Toy
base: {rate: 2}
grid: {width: [x]}
seeds: 0
mesure: [ranks]
=>
expected a name of at most 100 characters a-z, 0-9, _ and -, got 'Toy'  @ line 1, column 7, $.name
expected a number < 1.0, got 2  @ line 3, column 14, $.base.rate
expected a whole number, got 'x'  @ line 4, column 16, $.grid.width[0]
expected a number of seeds >= 1 or a list of seeds, got 0  @ line 5, column 8, $.seeds
unknown field 'mesure' (did you mean measure?)  @ line 6, column 1, $.mesure

=== all that pydantic says
base: {even: 3, names: [], level: hihg, nothing: 1, odd: 4, parts: 5}
grid: {code: [a, abcd, A-]}
=>
expected a multiple of 2, got 3  @ line 3, column 14, $.base.even
expected a list of at least 1 values, got []  @ line 3, column 24, $.base.names
expected 'low' or 'high', got 'hihg' (did you mean high?)  @ line 3, column 35, $.base.level
expected null, got 1  @ line 3, column 50, $.base.nothing
4 is even, which odd cannot be  @ line 3, column 58, $.base.odd
expected a valid array, got 5  @ line 3, column 68, $.base.parts
expected a text of at least 2 characters, got 'a'  @ line 4, column 15, $.grid.code[0]
expected a text of at most 3 characters, got 'abcd'  @ line 4, column 18, $.grid.code[1]
expected a text that matches ^[a-z]+$, got 'A-'  @ line 4, column 24, $.grid.code[2]

=== list too long
base: {names: [a, b, c], level: low}
=>
expected a list of at most 2 values, got ['a', 'b', 'c']  @ line 3, column 15, $.base.names

=== points that do not fit in the second block
grid:
- {lr: [0.1, 0.2]}
- {heads: [1, 3, 4]}
=>
width (8) is not divisible by heads (3) (at heads=3)  @ line 5, column 3, $.grid[1]

=== nothing is missing from a section that is lost (whole file)
name: toy
task: toy.py:Needy
base: &b {depth: 1}
=>
Needy has a parameter 'status', a column of the trials table: rename it  @ line 2, column 7, $.task
anchors (&) and aliases (*) are not read: write the value out  @ line 3, column 7, $.base

"""

# --- texts that do not show well between triple quotes
ODD = {
    "empty": (
        "",
        [
            "expected a mapping with the fields of a sweep, got nothing",
        ],
    ),
    "tab": (
        "name: toy\n\ttask: x",
        [
            "not YAML: while scanning for the next token: found character '\\t' that cannot start any token  @ line 2, column 1, $",
        ],
    ),
    "control character": (
        "name: toy\nbase: {label: a\x01b}",
        [
            "not YAML: the character U+0001 is refused  @ line 2, column 16, $",
        ],
    ),
    "deep nesting": (
        TOP + "base: " + "[" * 3000,
        [
            "nested deeper than 20 levels  @ line 3, column 27, $.base[0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0]",
        ],
    ),
    "too many digits": (
        TOP + "seeds: 9223372036854775808\nbase: {width: 1" + "0" * 5000 + "}",
        [
            "expected a number that fits 64 bits, got 9223372036854775808  @ line 3, column 8, $.seeds",
            "expected a number that fits 64 bits, got 1000000000000000000000000000000000000000  @ line 4, column 15, $.base.width",
        ],
    ),
    "windows line ends": (
        TOP.replace("\n", "\r\n") + "base:\r\n  width: x\r\n",
        [
            "expected a whole number, got 'x'  @ line 4, column 10, $.base.width",
        ],
    ),
    "name too long": (
        f"name: {'a' * 101}\ntask: toy.py:Toy",
        [
            "expected a name of at most 100 characters a-z, 0-9, _ and -, got 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa...  @ line 1, column 7, $.name",
        ],
    ),
    "too many trials": (
        TOP + f"seeds: 3\ngrid: {{lr: {[*range(1000)]}, weight_decay: {[*range(1000)]}}}",
        [
            "1,000,000 configurations x 3 seeds = 3,000,000 trials, at most 1,000,000  @ line 4, column 7, $.grid",
        ],
    ),
    "more failures than anyone reads": (
        TOP + f"base: {{heads: 3}}\ngrid: {{width: [8, 9], lr: {[*range(120)]}}}",
        [
            "width (8) is not divisible by heads (3) (at width=8 lr=0 and 99 more)  @ line 4, column 7, $.grid",
            "stopped after 100 combinations that do not go together  @ line 4, column 7, $.grid",
        ],
    ),
}


def table() -> dict[str, tuple[str, list[str]]]:
    """Case -> (text of the file, lines of the message)."""
    cases: dict[str, tuple[str, list[str]]] = {**ODD}
    for entry in (FILE + FIELDS + PARAMS).split("=== ")[1:]:
        text, _, message = entry.partition("=>\n")
        title, _, text = text.partition("\n")
        whole = title.endswith(" (whole file)")
        lines = message.strip().replace("{KNOWN}", KNOWN).split("\n")
        cases[title.removesuffix(" (whole file)")] = (text if whole else TOP + text, lines)
    return cases


CASES = table()


@pytest.mark.parametrize("case", CASES)
def test_a_bad_file_is_refused_with_every_problem_in_full(case: str, folder: Path) -> None:
    """Each problem says what we got, what we accept and where it stands; none is left for later."""
    text, lines = CASES[case]

    with pytest.raises(SweepError) as refused:
        parse(text, source="toy.yaml", base=folder)

    lines = [f"  {line}" for line in lines]
    count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
    assert str(refused.value).split("\n") == [f"toy.yaml: {count}", *lines]
