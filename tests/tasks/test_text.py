"""English text as token ids: cleaning, tokens, chunks, and the token ids kept on disk."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from datasets import Dataset
from tokenizers import Tokenizer, models

from tasks import data, text
from tasks.data import CorruptDataError, MissingDataError
from tasks.task import TaskError
from tests.tasks import texts

wikitext, other_folder = texts.wikitext, texts.other_folder


def test_cleaning_keeps_letters_digits_and_white_space_in_lower_case():
    """The line end, too."""
    assert text.cleaned(" The <unk> River 's 1 @,@ 250 m , Ærø — x_1 \n") == (
        " the unk river s 1  250 m  ærø  x1 \n"
    )


def test_cleaning_knows_the_letters_and_white_space_of_all_scripts():
    """Against the rule written out, over the first two planes of Unicode."""
    everything = "".join(map(chr, range(0x20000)))

    slow = "".join(c for c in everything.lower() if c.isalnum() or c.isspace())
    assert text.cleaned(everything) == slow


def test_chunks_follow_each_other_inside_a_batch_of_lines_and_its_remainder_is_dropped():
    """Batches of 7, 1, 0 and 12 tokens, in chunks of 3."""
    corpus = text.Corpus(np.zeros(20, np.uint16), np.array([7, 8, 8, 20]))

    assert corpus.starts(3).tolist() == [0, 3, 8, 11, 14, 17]
    assert corpus.starts(12).tolist() == [8]
    assert corpus.starts(13).tolist() == []


def test_the_documentation_of_python_is_its_words_in_lower_case():
    """Token by token, against all runs of ASCII letters and digits in the original."""
    from pydoc_data.topics import topics

    original = " ".join(topics[name] for name in sorted(topics)).lower()
    corpus = text.corpus("python_docs")
    words = "".join(c if c.isascii() and c.isalnum() else " " for c in original).split()

    assert "".join(text.ALPHABET[token] for token in corpus.tokens) == " ".join(words)
    assert corpus.ends.tolist() == [len(corpus.tokens)]


def test_a_byte_pair_vocabulary_is_trained_alike_each_time():
    """On a part of the text, large enough for ties between pairs."""
    part = "".join(text.ALPHABET[token] for token in text.corpus("python_docs").tokens[:50_000])
    first, again = (text._byte_pairs(part, 300) for _ in range(2))

    assert np.array_equal(first, again)
    assert first.max() == 299
    assert len(first) < 0.5 * len(part)


def slow_tokens(folder, split, cleaned=text.cleaned):
    """Token ids of each batch of 1,000 lines: cleaned, tokenised one by one, joined."""
    tokenizer = Tokenizer.from_file(str(folder / "gpt-neox-20b" / "tokenizer.json"))
    lines = texts.lines_of(split, texts.SPLITS[split])
    return [
        [i for line in lines[b : b + 1000] for i in tokenizer.encode(cleaned(line)).ids]
        for b in range(0, len(lines), 1000)
    ]


@pytest.mark.parametrize("split", texts.SPLITS)
def test_wikitext_is_its_cleaned_lines_in_tokens_batch_by_batch(wikitext, split):
    batches = slow_tokens(wikitext, split)
    corpus = text.corpus("wikitext103", split)

    assert corpus.tokens.tolist() == [token for batch in batches for token in batch]
    assert corpus.ends.tolist() == np.cumsum([len(batch) for batch in batches]).tolist()
    # the run of two spaces that a removed mark leaves has a token of its own
    assert texts.small_tokenizer().token_to_id("  ") in corpus.tokens


def test_wikitext_as_the_papers_code_reads_it_is_its_lines_as_they_are(wikitext):
    """Capitals, marks, <unk> and line ends; kept beside the cleaned text."""
    batches = slow_tokens(wikitext, "validation", cleaned=lambda line: line)
    raw = text.corpus("wikitext103", "validation", clean=False)
    cleaned = text.corpus("wikitext103", "validation")

    assert raw.tokens.tolist() == [token for batch in batches for token in batch]
    decoded = texts.small_tokenizer().decode(raw.tokens.tolist())
    assert {"T", "<", ">", "@", "Ċ"} <= set(decoded)  # the last is a line end, byte by byte
    assert len(cleaned.tokens) < len(raw.tokens)


def test_tokens_are_kept_on_disk_and_mapped_into_memory(wikitext):
    text.corpus("wikitext103", "validation")
    kept = {p: p.stat().st_mtime_ns for p in (wikitext / "wikitext103-tokens").iterdir()}
    again = text.corpus("wikitext103", "validation")

    assert isinstance(again.tokens, np.memmap)
    assert kept == {p: p.stat().st_mtime_ns for p in (wikitext / "wikitext103-tokens").iterdir()}
    assert not [path for path in kept if ".part" in path.name]


def test_nothing_that_is_done_to_the_tokens_in_memory_reaches_the_file(wikitext):
    tokens = text.corpus("wikitext103", "validation").tokens
    first = int(tokens[0])
    tokens[0] = first + 1

    assert text.corpus("wikitext103", "validation").tokens[0] == first


def test_other_lines_and_another_tokenizer_are_tokenised_anew(other_folder):
    tokenizer = texts.small_tokenizer()
    texts.write_tokenizer(other_folder, tokenizer)
    texts.write_lines(other_folder, {"train": ["one"], "validation": ["one two"]})
    assert text.corpus("wikitext103").tokens.tolist() == tokenizer.encode("one").ids

    texts.write_lines(other_folder, {"train": ["one", "two"]})
    assert tokenizer.decode(text.corpus("wikitext103").tokens.tolist()).split() == list("onetwo")

    tokenizer.add_tokens(["one"])
    texts.write_tokenizer(other_folder, tokenizer)
    assert text.corpus("wikitext103").tokens[0] == tokenizer.token_to_id("one")


def test_trials_that_start_at_once_find_the_same_tokens(other_folder):
    """Six readers of a folder without tokens; one makes them, and all see them whole."""
    texts.write_tokenizer(other_folder, texts.small_tokenizer())
    texts.write_lines(other_folder, {"train": ["one two"] * 1500, "validation": ["one"]})
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: text.corpus("wikitext103"), range(6)))

    for corpus in found:
        assert np.array_equal(corpus.tokens, found[0].tokens)
        assert corpus.ends.tolist() == [len(corpus.tokens) * 2 // 3, len(corpus.tokens)]
    names = sorted(path.suffix for path in (other_folder / "wikitext103-tokens").iterdir())
    assert names == [".lock", ".npy", ".uint16"]


@pytest.fixture
def kept(other_folder):
    """A folder with the tokens of one split, and the files of these: tokens and ends."""
    texts.write_tokenizer(other_folder, texts.small_tokenizer())
    texts.write_lines(other_folder, {"train": ["one two"], "validation": ["one"]})
    text.corpus("wikitext103")
    here = other_folder / "wikitext103-tokens"
    return next(here.glob("train-*.uint16")), next(here.glob("train-*.npy"))


def test_tokens_that_were_cut_short_are_refused_and_made_anew_once_removed(kept):
    tokens, _ = kept
    whole = tokens.read_bytes()
    tokens.write_bytes(whole[:-2])
    with pytest.raises(CorruptDataError) as raised:
        text.corpus("wikitext103")

    assert str(raised.value) == (
        f"{tokens} has {len(whole) - 2} bytes, and should have {len(whole)}: it is damaged. "
        "Remove it: the next trial makes it anew."
    )
    tokens.unlink()
    assert text.corpus("wikitext103").tokens.tobytes() == whole


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01", b"no array"])
def test_damaged_ends_of_batches_are_refused_and_made_anew_once_removed(kept, content):
    _, ends = kept
    whole = ends.read_bytes()
    ends.write_bytes(content)
    with pytest.raises(CorruptDataError) as raised:
        text.corpus("wikitext103")

    assert str(raised.value).startswith(f"{ends} cannot be read: ")
    assert str(raised.value).endswith(". Remove it: the next trial makes it anew.")
    ends.unlink()
    text.corpus("wikitext103")
    assert ends.read_bytes() == whole


def test_what_a_killed_process_left_is_removed_before_the_tokens_are_written(kept):
    """Not what somebody may still be writing, and not what belongs to another text."""
    tokens, ends = kept
    names = (f"{tokens.name}.12.part", f"{tokens.name}.12.ends", "val-34.uint16.56.part")
    old, old_ends, other = (tokens.with_name(name) for name in names)
    fresh = tokens.with_name(f"{tokens.name}.78.part")
    for file in (old, old_ends, other, fresh):
        file.touch()
        if file != fresh:
            os.utime(file, (time.time() - 3600,) * 2)
    tokens.unlink()
    text.corpus("wikitext103")

    parts = {path for path in tokens.parent.iterdir() if path.suffix in (".part", ".ends")}
    assert parts == {other, fresh}
    assert ends.is_file()


def test_a_text_without_a_word_has_no_chunks(other_folder):
    texts.write_tokenizer(other_folder, texts.small_tokenizer())
    texts.write_lines(other_folder, {"train": ["", "."], "validation": ["one"]})

    assert text.corpus("wikitext103").starts(1).tolist() == []


def test_a_missing_tokenizer_names_its_place_its_size_and_the_command(other_folder):
    texts.write_lines(other_folder, {"train": ["one"], "validation": ["one"]})
    place = other_folder / "gpt-neox-20b"
    expected = (
        f"the tokenizer of wikitext103 is not on this machine: looked for {place}/tokenizer.json. "
        "Download it there (about 2.1 MB) with: "
        f"hf download EleutherAI/gpt-neox-20b tokenizer.json --local-dir {place}"
    )

    assert text.missing("wikitext103") == [expected]
    with pytest.raises(MissingDataError) as raised:
        text.corpus("wikitext103")
    assert str(raised.value) == expected


def test_a_missing_data_set_and_its_tokenizer_are_reported_together(other_folder):
    problems = text.missing("wikitext103")

    assert len(problems) == 2
    assert problems[0] == data.missing("wikitext103")[0]


def test_the_embedded_text_lacks_nothing_here():
    assert text.missing("python_docs") == []
    assert text.missing("python_docs", 300) == []


def again(place):
    return (
        "Remove it and download it again: hf download EleutherAI/gpt-neox-20b tokenizer.json "
        f"--local-dir {place}"
    )


def test_a_damaged_tokenizer_is_named(other_folder):
    texts.write_lines(other_folder, {"train": ["one"], "validation": ["one"]})
    file = texts.write_tokenizer(other_folder, texts.small_tokenizer())
    file.write_text("{")
    with pytest.raises(CorruptDataError) as raised:
        text.corpus("wikitext103")

    assert str(raised.value).startswith(f"{file} cannot be read: ")
    assert str(raised.value).endswith(again(file.parent))


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(other_folder):
    texts.write_lines(other_folder, {"train": ["one"], "validation": ["one"]})
    one_too_many = Tokenizer(models.WordLevel({"one": text.GPT_NEOX_TOKENS}, unk_token="one"))
    file = texts.write_tokenizer(other_folder, one_too_many)
    with pytest.raises(CorruptDataError) as raised:
        text.corpus("wikitext103")

    assert str(raised.value) == (
        f"{file} has token ids up to 50277, that of EleutherAI/gpt-neox-20b up to 50276. "
        + again(file.parent)
    )


def test_a_file_without_text_is_named(other_folder):
    texts.write_tokenizer(other_folder, texts.small_tokenizer())
    texts.write_lines(other_folder, {"train": ["one"], "validation": ["one"]})
    file = next((other_folder / "wikitext103").rglob("train*.parquet"))
    Dataset.from_dict({"words": ["one"], "page": [1]}).to_parquet(str(file))
    with pytest.raises(CorruptDataError) as raised:
        text.corpus("wikitext103")

    assert str(raised.value) == (
        f"{file}: expected a column `text`, got words, page. Remove it and download it again."
    )


def test_a_folder_that_cannot_be_written_to_is_named(other_folder):
    """Whatever the reason: here a file stands where the folder should."""
    texts.write_tokenizer(other_folder, texts.small_tokenizer())
    texts.write_lines(other_folder, {"train": ["one"], "validation": ["one"]})
    (other_folder / "wikitext103-tokens").touch()
    with pytest.raises(TaskError) as raised:
        text.corpus("wikitext103")

    assert str(raised.value) == (
        f"the token ids of wikitext103 cannot be written to {other_folder}/wikitext103-tokens: "
        "File exists. Make room there, or name another folder in the sweep file's `data:` or in "
        "$SPECTRAL_SWEEPS_DATA"
    )
