"""`sweep tasks`: what a user reads of a task, its parameters and its data sets."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, create_model

import tasks
from orchestrator import catalogue, cli, options
from orchestrator.errors import UserError

EXAMPLE = str(Path(__file__).parents[2] / "examples" / "my_task.py") + ":Waves"


class Level(Enum):
    LOW = "low"
    HIGH = "high"


class Kinds(BaseModel):
    """One field per kind of what a parameter may be."""

    a: Annotated[int, Field(ge=1)]
    b: Annotated[float, Field(gt=0, le=0.5)]
    c: Annotated[int, Field(ge=1)] | None
    d: Literal["x", "y", "z"]
    e: Literal["only"]
    f: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]]
    g: tuple[int, ...]
    h: float | Literal["auto"]
    i: Level
    j: bool
    k: Annotated[int, Field(ge=0, lt=2**63)]
    m: str
    n: Any
    o: Annotated[int, Field(le=2_000_000)]


ACCEPTED = {
    "a": "whole number >= 1",
    "b": "number > 0, <= 0.5",
    "c": "whole number >= 1 or none",
    "d": "x, y or z",
    "e": "only",
    "f": "list of 2: number >= 0, < 1",
    "g": "list: whole number",
    "h": "number or auto",
    "i": "low or high",
    "j": "true or false",
    "k": "whole number >= 0",
    "m": "text",
    "n": "",
    "o": "whole number <= 2000000",
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_a_parameter_may_be_is_said_in_words(name: str) -> None:
    schema = Kinds.model_json_schema()

    said = catalogue.accepts(schema["properties"][name], schema["$defs"])

    assert said == ACCEPTED[name]


def output(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    cli.app(list(words), standalone_mode=False)
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("columns", [80, 140])
def test_every_task_fits_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    """Names are whole, lines are not too long, no word of a meaning is lost."""
    monkeypatch.setattr(options.out, "_width", columns)
    for name in tasks.REGISTRY:
        lines = output(capsys, "tasks", name)
        text = " ".join(" ".join(lines).split())
        config = tasks.resolve(name).Config
        for parameter in config.model_fields:
            stream = parameter.removesuffix("_seed")
            ignored = stream in tasks.TrainingConfig.streams and stream not in config.streams
            star = "*" * (parameter in tasks.per_trial_fields(config))
            starting = [line for line in lines if line.startswith(f" {parameter}{star} ")]
            assert len(starting) == (not ignored), parameter
        assert max(map(len, lines)) <= columns
        assert "…" not in text


def test_a_task_by_path_is_described_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own parameters first, then the shared ones; seeds of streams it does not use left out."""
    monkeypatch.setattr(options.out, "_width", 140)

    lines = output(capsys, "tasks", EXAMPLE)

    assert lines[:5] == [
        f"{EXAMPLE} (version 1)",
        "",
        "Learn a sum of two waves from noisy points: 1 input, 2 hidden layers, 1 output.",
        "",
        "splits: train, val",
    ]
    rows = [line.split(maxsplit=2) for line in lines]
    assert rows.index(["points", "64", "[whole number]"]) < lines.index("shared by all tasks")
    lr = ["lr*", "0.001", "learning rate, before the schedule [number >= 0]"]
    assert rows.index(lr) > lines.index("shared by all tasks")
    named = {row[0].strip("*") for row in rows if row}
    assert {"init_seed", "split_seed", "noise_seed"} <= named
    assert named.isdisjoint({"labels_seed", "order_seed", "dropout_seed"})


def test_the_data_sets_of_a_task_are_said_to_be_here_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of ours is here if its folder holds its files; of any other name nothing is said."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(tasks.data.ENVIRONMENT, str(tmp_path))
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "train.parquet").touch()

    class Pictures(tasks.FullBatchConfig):
        data: Literal["digits", "mnist", "cifar10"] = "digits"

    class Learned(tasks.Task):
        Config = Pictures

    assert catalogue.heading("learned", Learned).splitlines()[-1] == (
        "data sets: digits, mnist (here), cifar10 (missing); see `sweep data`"
    )


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (str, None),
        (str | None, None),
        (str | int, None),
        (Literal["made", "imagenet"], "data sets: made, imagenet"),
        (Literal["made", "imagenet"] | None, "data sets: made, imagenet"),
        (Literal[1, 2], None),
    ],
    ids=str,
)
def test_a_parameter_called_data_of_a_users_task_may_be_anything(
    kind: Any, said: str | None
) -> None:
    """Only texts that are listed are data sets."""
    config = create_model("Own", __base__=tasks.FullBatchConfig, data=(kind, ...))
    own = type("Own", (tasks.Task,), {"Config": config})

    lines = catalogue.heading("own", own).splitlines()

    assert [line for line in lines if line.startswith("data sets")] == ([said] if said else [])


def test_the_data_in_our_own_tasks_need_no_download() -> None:
    heading = catalogue.heading("x", tasks.resolve("image_classification"))

    assert "data sets: digits (needs no download), " in heading


def test_an_unknown_task_is_refused() -> None:
    """With the nearest name, exit code 2."""
    with pytest.raises(UserError, match=r"^unknown task 'modular' \(did you mean") as caught:
        cli.app(["tasks", "modular"], standalone_mode=False)

    assert caught.value.exit_code == 2
