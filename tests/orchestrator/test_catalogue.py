"""`sweep tasks`: what a user reads of a task, its parameters and its data sets."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, create_model

import tasks
import tasks.librispeech
import tasks.text
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


# --- what is here, as the task that reads it says ----------------------------------------------


@pytest.fixture
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of data sets, and an empty cache of the `datasets` library."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(tasks.data.ENVIRONMENT, str(tmp_path / "sets"))
    tasks.data.use(None)  # a command that ran in this process may have chosen another
    return tmp_path / "sets"


def put(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"12345")


def test_the_data_sets_of_a_task_are_said_to_be_here_or_not(sets: Path) -> None:
    """One of ours is here if its folder holds its files; of any other name nothing is said."""
    put(sets / "mnist" / "train.parquet")

    class Pictures(tasks.FullBatchConfig):
        data: Literal["digits", "mnist", "cifar10"] = "digits"

    class Learned(tasks.Task):
        Config = Pictures

    assert catalogue.heading("learned", Learned).splitlines()[-1] == (
        "data sets: digits, mnist (here), cifar10 (missing); see `sweep data`"
    )


def text_files(sets: Path) -> list[Path]:
    folder = sets / "wikitext103" / "wikitext-103-v1"
    return [folder / f"{split}-00000-of-00001.parquet" for split in ("train", "validation")]


TEXT = (
    "hf download Salesforce/wikitext --repo-type dataset --include 'wikitext-103-v1/*' --local-dir"
)
TOKENIZER = "hf download EleutherAI/gpt-neox-20b tokenizer.json --local-dir"


def test_a_text_that_is_missing_is_provided_with_its_tokenizer(sets: Path) -> None:
    """Both commands, and the bytes of both; a line for each problem."""
    [found] = catalogue.data_sets("wikitext103")

    assert (found.here, found.num_bytes) == (False, 312_100_000)
    assert found.command == f"{TEXT} {sets}/wikitext103 && {TOKENIZER} {sets}/gpt-neox-20b"
    assert found.problem.split("\n") == tasks.text.missing("wikitext103")
    assert len(found.problem.split("\n")) == 2


def test_a_text_without_its_tokenizer_is_not_here(
    sets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only what is missing is downloaded."""
    put(*text_files(sets))

    [found] = catalogue.data_sets("wikitext103")
    lines = output(capsys, "data", "wikitext103")

    command = f"{TOKENIZER} {sets}/gpt-neox-20b"
    assert (found.here, found.num_bytes, found.command) == (False, 2_100_000, command)
    assert lines[-1] == f"wikitext103  missing  2.1 MB   {command}"
    assert "wikitext103 (missing)" in catalogue.heading("x", tasks.resolve("language_modeling"))


def test_a_text_with_its_tokenizer_is_here(sets: Path) -> None:
    put(*text_files(sets), sets / "gpt-neox-20b" / "tokenizer.json")

    [found] = catalogue.data_sets("wikitext103")

    assert (found.here, found.num_bytes, found.command, found.problem) == (True, 10, "", "")
    assert "wikitext103 (here)" in catalogue.heading("x", tasks.resolve("language_modeling"))


def test_unpacked_archives_of_librispeech_are_here(sets: Path) -> None:
    """The task reads them as well as Parquet files."""
    for name in ("train-clean-100", "dev-clean"):
        put(sets / "librispeech" / "LibriSpeech" / name / "1" / "2" / "1-2.trans.txt")

    [found] = catalogue.data_sets("librispeech")

    assert tasks.librispeech.missing() == []
    assert (found.here, found.place) == (True, str(sets / "librispeech"))
    assert "librispeech (here)" in catalogue.heading("x", tasks.resolve("speech_recognition"))


@pytest.mark.parametrize("name", tasks.data.SETS)
def test_what_a_list_says_of_a_data_set_is_what_a_trial_would_be_refused_for(
    sets: Path, name: str
) -> None:
    """Every task of ours that reads it lacks the same."""
    readers = [
        task_class
        for task_class in map(tasks.resolve, tasks.REGISTRY)
        if name in str(task_class.Config.model_fields.get("data"))
    ]

    assert readers
    for each in readers:
        assert each.missing(each.Config(data=name)) == catalogue.lacking(name) != []  # type: ignore[call-arg]


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
