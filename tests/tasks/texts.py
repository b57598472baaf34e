"""WikiText-103 and the tokenizer of GPT-NeoX in miniature: files of the same formats, made here."""

import dataclasses
from contextlib import contextmanager
from pathlib import Path

import datasets
import pytest
from datasets import Dataset
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers

from tasks import data

SPLITS = {"train": 2300, "validation": 150}  # lines; 2300 are two batches of 1,000 and one of 300


def lines_of(split, count):
    """Empty lines, headings, and sentences with the marks that WikiText has."""
    words = ("The", "river", "of", "<unk>", "1", "@,@", "250", "metres", "'s", "Ærø", "naïve")
    start = len(split)
    lines = []
    for i in range(count):
        sentence = " ".join(words[(start + i * j) % len(words)] for j in range(1, 3 + i % 5))
        lines.append(("", f" = River {i} = \n", f" {sentence} , {i} . \n")[i % 3])
    return lines


def small_tokenizer():
    """Byte-level byte pairs, and one token for two spaces, added to the vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([" the river of 250 metres"] * 9, trainer)
    tokenizer.add_tokens([AddedToken("  ", normalized=False)])
    return tokenizer


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> Path:
    file = folder / "gpt-neox-20b" / "tokenizer.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(file))
    return file


def write_lines(folder: Path, splits) -> None:
    place = folder / "wikitext103" / "wikitext-103-v1"
    place.mkdir(parents=True, exist_ok=True)
    for split, lines in splits.items():
        Dataset.from_dict({"text": lines}).to_parquet(
            str(place / f"{split}-00000-of-00001.parquet")
        )


@contextmanager
def small_wikitext(folder: Path):
    """A folder of data sets that holds both, in use until the end; its path."""
    with pytest.MonkeyPatch.context() as patch:
        # Arrow copies that `datasets` makes of Parquet files.
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "huggingface")
        datasets.disable_progress_bars()
        patch.setitem(
            data.SETS, "wikitext103", dataclasses.replace(data.SETS["wikitext103"], rows={})
        )
        write_tokenizer(folder, small_tokenizer())
        write_lines(folder, {split: lines_of(split, count) for split, count in SPLITS.items()})
        data.use(folder)
        try:
            yield folder
        finally:
            data.use(None)
            datasets.enable_progress_bars()


# A test module takes these as `wikitext = texts.wikitext`.


@pytest.fixture(scope="module")
def wikitext(tmp_path_factory):
    with small_wikitext(tmp_path_factory.mktemp("data")) as folder:
        yield folder


@pytest.fixture
def other_folder(wikitext, tmp_path):
    """An empty folder of data sets in place of the module's."""
    data.use(tmp_path)
    yield tmp_path
    data.use(wikitext)
