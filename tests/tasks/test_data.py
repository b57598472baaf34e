"""Real data sets, on small files in the forms in which the real ones come."""

import dataclasses
import shutil
import sys
from pathlib import Path

import pytest

datasets = pytest.importorskip("datasets")

from tasks import data  # noqa: E402  (after the check that the extra is installed)
from tasks.data import SETS, CorruptDataError, MissingDataError, missing, open_split  # noqa: E402


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder of data, and an empty cache of the `datasets` library."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data.use(tmp_path / "data")
    yield tmp_path / "data"
    data.use(None)


@pytest.fixture
def any_rows(monkeypatch):
    """Whatever the number of rows of WikiText-103 is, it is right."""
    monkeypatch.setitem(SETS, "wikitext103", dataclasses.replace(SETS["wikitext103"], rows={}))


def table(*numbers):
    return datasets.Dataset.from_dict({"text": [f"line {n}" for n in numbers]})


def write(dataset, path):
    """As Parquet; without the bars of progress."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.to_pandas().to_parquet(path)
    return path


def texts(split):
    return list(split["text"])


def test_parquet_files_of_a_split_are_read_in_their_order(folder):
    write(table(2, 3), folder / "mnist" / "mnist" / "train-00001-of-00002.parquet")
    write(table(0, 1), folder / "mnist" / "mnist" / "train-00000-of-00002.parquet")
    write(table(9), folder / "mnist" / "mnist" / "test-00000-of-00001.parquet")

    assert missing("mnist") == []
    assert texts(open_split("mnist", "train")) == ["line 0", "line 1", "line 2", "line 3"]
    assert texts(open_split("mnist", "test")) == ["line 9"]


def test_files_lying_in_a_folder_of_the_splits_name_are_that_split(folder):
    """LibriSpeech is stored like this."""
    here = folder / "librispeech" / "clean"
    write(table(0), here / "train.100" / "0000.parquet")
    write(table(1), here / "train.100" / "0001.parquet")
    write(table(2), here / "validation" / "0000.parquet")

    assert missing("librispeech") == []
    assert texts(open_split("librispeech", "train.100")) == ["line 0", "line 1"]


def test_other_configurations_beside_the_wanted_one_are_not_read(folder, any_rows):
    here = folder / "wikitext103"
    for config, number in (("wikitext-2-v1", 2), ("wikitext-103-v1", 103)):
        for split in ("train", "validation"):
            write(table(number), here / config / f"{split}-00000-of-00001.parquet")

    assert texts(open_split("wikitext103", "train")) == ["line 103"]


def test_a_saved_data_set_is_read(folder):
    datasets.DatasetDict({"train": table(0, 1), "test": table(2)}).save_to_disk(folder / "mnist")

    assert missing("mnist") == []
    assert texts(open_split("mnist", "train")) == ["line 0", "line 1"]


def cached(tmp_path, config, written):
    """A folder of the library's cache, as `load_dataset` leaves it for a set of the hub."""
    made = datasets.load_dataset(
        "parquet", data_files={"train": str(written)}, cache_dir=tmp_path / "made"
    )["train"]
    source = Path(made.cache_files[0]["filename"])
    place = tmp_path / "cache" / "ylecun___mnist" / config / "0.0.0" / "0123abcd"
    place.mkdir(parents=True)
    shutil.copy(source, place / "mnist-train.arrow")
    shutil.copy(source.with_name("dataset_info.json"), place)
    return place


def test_without_a_folder_the_cache_of_the_library_is_used_and_nothing_else(folder, tmp_path):
    """Read from its files: nothing asks the hub, which would be reached if there is a network."""
    place = cached(tmp_path, "mnist", write(table(5, 6), tmp_path / "some.parquet"))

    assert missing("mnist") == []
    assert texts(open_split("mnist", "train")) == ["line 5", "line 6"]
    assert data.place("mnist", "train") == place / "mnist-train.arrow"


def test_a_folder_of_the_cache_that_was_not_finished_does_not_count(folder, tmp_path):
    place = cached(tmp_path, "mnist", write(table(5, 6), tmp_path / "some.parquet"))
    (place / "dataset_info.json").unlink()

    assert len(missing("mnist")) == 1


def test_images_come_as_they_are_encoded(folder):
    image = datasets.Image().encode_example({"bytes": b"no picture", "path": None})
    features = datasets.Features({"image": datasets.Image()})
    datasets.DatasetDict(
        {"train": datasets.Dataset.from_dict({"image": [image]}, features=features)}
    ).save_to_disk(folder / "mnist")

    assert open_split("mnist", "train")[0] == {"image": {"bytes": b"no picture", "path": None}}


def test_a_data_set_that_is_not_there_is_named_with_its_size_and_command(folder):
    here = folder / "librispeech"
    expected = (
        f"data set librispeech is not on this machine: looked in {here}. Download it there (about "
        "6.7 GB) with: hf download openslr/librispeech_asr --repo-type dataset "
        "--include 'clean/train.100/*' --include 'clean/validation/*' --local-dir "
        f"{here}. Or name the folder that holds a folder 'librispeech' in the sweep file's `data:` "
        "or in $SPECTRAL_SWEEPS_DATA."
    )

    assert missing("librispeech") == [expected]
    with pytest.raises(MissingDataError) as caught:
        open_split("librispeech", "train.100")
    assert str(caught.value) == expected


@pytest.mark.parametrize("name", SETS)
def test_every_data_set_says_what_provides_it(name):
    (problem,) = missing(name)

    assert f"hf download {SETS[name].repository} --repo-type dataset" in problem


def test_a_split_that_is_missing_is_named_before_a_trial_asks_for_it(folder, any_rows):
    here = folder / "wikitext103" / "wikitext-103-v1"
    write(table(1), here / "train-00000-of-00001.parquet")
    expected = (
        f"data set wikitext103: there is no split 'validation' in {folder / 'wikitext103'}: "
        "expected Parquet files such as validation-00000-of-00001.parquet, or a folder validation "
        "of Dataset.save_to_disk. What is not there is downloaded with (all of it is about 310 "
        "MB): hf download Salesforce/wikitext --repo-type dataset "
        "--include 'wikitext-103-v1/*' --local-dir "
        f"{folder / 'wikitext103'}"
    )

    assert missing("wikitext103") == [expected]
    with pytest.raises(MissingDataError) as caught:
        open_split("wikitext103", "validation")
    assert str(caught.value) == expected
    assert texts(open_split("wikitext103", "train")) == ["line 1"]


def test_a_download_that_was_interrupted_is_named(folder):
    here = folder / "mnist" / "mnist"
    for number in (0, 2):
        write(table(number), here / f"train-0000{number}-of-00004.parquet")
    expected = (
        f"data set mnist: of the 4 files of split 'train' in {here}, counted from 0, these are not "
        "there: 1, 3. What is not there is downloaded with (all of it is about 18 MB): "
        "hf download ylecun/mnist --repo-type dataset "
        f"--local-dir {folder / 'mnist'}"
    )

    assert missing("mnist") == [expected]
    with pytest.raises(MissingDataError) as caught:
        open_split("mnist", "train")
    assert str(caught.value) == expected


def test_a_split_with_too_few_rows_is_refused(folder):
    """One of several files whose names do not say how many there are."""
    file = write(table(0, 1), folder / "wikitext103" / "wikitext-103-v1" / "train" / "0000.parquet")
    with pytest.raises(CorruptDataError) as caught:
        open_split("wikitext103", "train")

    assert str(caught.value) == (
        f"{file} has 2 rows, and split 'train' of data set wikitext103 should have 1,801,350. "
        "Remove it and download it again: hf download Salesforce/wikitext --repo-type dataset "
        f"--include 'wikitext-103-v1/*' --local-dir {folder / 'wikitext103'}"
    )


def test_a_split_in_two_folders_is_refused_instead_of_read_twice(folder):
    for place in ("mnist", "copy"):
        write(table(1), folder / "mnist" / place / "train-00000-of-00001.parquet")
    with pytest.raises(CorruptDataError) as caught:
        open_split("mnist", "train")

    assert str(caught.value) == (
        f"data set mnist: files of split 'train' lie in several folders: {folder}/mnist/copy, "
        f"{folder}/mnist/mnist. Keep one of them."
    )


def test_a_truncated_parquet_file_is_named(folder):
    here = folder / "mnist"
    write(table(0), here / "train-00000-of-00002.parquet")
    damaged = write(table(1), here / "train-00001-of-00002.parquet")
    damaged.write_bytes(damaged.read_bytes()[:-10])
    with pytest.raises(CorruptDataError) as caught:
        open_split("mnist", "train")

    assert str(caught.value).startswith(f"{damaged} cannot be read: Parquet magic bytes not found")
    assert str(caught.value).endswith(". Remove it and download it again.")


def test_a_parquet_file_damaged_in_the_middle_is_named(folder):
    damaged = write(table(*range(100)), folder / "mnist" / "train-00000-of-00001.parquet")
    content = bytearray(damaged.read_bytes())
    content[4:60] = bytes(56)
    damaged.write_bytes(content)
    with pytest.raises(CorruptDataError) as caught:
        open_split("mnist", "train")

    assert str(caught.value).startswith(f"{damaged} cannot be read: ")
    assert "error occurred while generating" not in str(caught.value)


def test_a_saved_data_set_without_its_table_is_named(folder):
    datasets.DatasetDict({"train": table(0, 1)}).save_to_disk(folder / "mnist")
    next((folder / "mnist" / "train").glob("*.arrow")).unlink()
    with pytest.raises(CorruptDataError) as caught:
        open_split("mnist", "train")

    assert str(caught.value).startswith(f"{folder}/mnist/train cannot be read: ")


def test_a_truncated_saved_table_is_named(folder):
    datasets.DatasetDict({"train": table(*range(1000))}).save_to_disk(folder / "mnist")
    damaged = next((folder / "mnist" / "train").glob("*.arrow"))
    damaged.write_bytes(damaged.read_bytes()[:600])
    with pytest.raises(CorruptDataError) as caught:
        open_split("mnist", "train")

    assert str(caught.value).startswith(f"{folder}/mnist/train cannot be read: ")


def test_what_is_no_fault_of_the_file_is_not_blamed_on_it(folder, tmp_path, monkeypatch):
    """A cache that cannot be written to: removing the data set would not help."""
    write(table(0), folder / "mnist" / "train-00000-of-00001.parquet")
    (tmp_path / "file").touch()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file" / "cache")
    with pytest.raises(NotADirectoryError):
        open_split("mnist", "train")


def test_without_the_package_it_is_the_package_that_is_missing(folder, monkeypatch):
    write(table(0), folder / "mnist" / "train-00000-of-00001.parquet")
    monkeypatch.setitem(sys.modules, "datasets", None)
    expected = (
        "data set mnist: the package `datasets` that reads it is not installed: "
        "pip install 'spectral-sweeps[data]'"
    )

    assert missing("mnist") == [expected]
    with pytest.raises(MissingDataError) as caught:
        open_split("mnist", "train")
    assert str(caught.value) == expected


def test_a_folder_called_datasets_is_not_taken_for_the_package(tmp_path, monkeypatch):
    (tmp_path / "datasets").mkdir()
    monkeypatch.delitem(sys.modules, "datasets")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])

    assert "is not installed" in missing("mnist")[0]


def test_the_folder_is_the_one_given_or_the_environments_or_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(data.ENVIRONMENT, "~/named")
    data.use("~/given")

    assert data.folder() == tmp_path / "given"
    data.use(None)
    assert data.folder() == tmp_path / "named"
    monkeypatch.delenv(data.ENVIRONMENT)
    assert data.folder() == tmp_path / ".cache" / "spectral-sweeps"
