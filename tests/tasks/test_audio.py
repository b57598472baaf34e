"""Features of sound, the synthesiser, LibriSpeech in the forms it comes in."""

import platform
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch.nn.functional import ctc_loss

from tasks import data, librispeech, synthesised_speech
from tasks.audio import (
    Utterances,
    features,
    mel_filters,
    mel_spectrogram,
    normalised,
    read_sound,
)
from tasks.task import TaskError
from tasks.transcripts import CHARACTERS, encode
from tests.tasks.sounds import COUNTS, TEXTS, wave, waves, write_folder, write_parquet


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A data folder beside the user's home, with few utterances to be found in it."""
    monkeypatch.setattr(librispeech, "NUM_UTTERANCES", COUNTS)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    data.use(tmp_path / "data")
    yield tmp_path / "data"
    data.use(None)


@pytest.fixture(scope="module")
def their_filters():
    from librosa.filters import mel

    return mel(sr=16_000, n_fft=400, n_mels=40, htk=True, norm="slaney")


def test_mel_filters_are_those_of_librosa(their_filters):
    """HTK's scale, Slaney's normalisation; equal to 1e-5 of each value, in float32."""
    torch.testing.assert_close(
        mel_filters().T, torch.from_numpy(their_filters), rtol=1e-5, atol=1e-8
    )


def test_the_mel_spectrogram_is_that_of_its_definition(their_filters):
    """One window at a time in float64, with librosa's filters; to 1e-6 of the largest value.

    `librosa.feature.melspectrogram(y, sr=16000, n_fft=400, hop_length=160, n_mels=40, htk=True,
    norm="slaney", pad_mode="reflect")` is the same, and compiles code for half a minute first.
    """
    sound = torch.from_numpy(wave(1, 20_000)).float() / 2**15
    around = np.pad(sound.double().numpy(), 200, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    slow = []
    for begin in range(0, 20_000 + 1, 160):
        spectrum = np.fft.rfft(window * around[begin : begin + 400])
        slow.append(their_filters.astype(np.float64) @ np.abs(spectrum) ** 2)
    theirs = np.stack(slow)

    ours = mel_spectrogram(sound)

    assert ours.shape == (126, 40)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-4, atol=1e-6 * theirs.max())


def test_each_band_is_normalised_and_three_frames_become_their_mean():
    mel = torch.rand(8, 40) * torch.arange(1.0, 41.0) + 3
    frames = mel.double().numpy()
    frames = (frames - frames.mean(0)) / frames.std(0, ddof=1)
    slow = np.stack([frames[0:3].mean(0), frames[3:6].mean(0)])

    np.testing.assert_allclose(normalised(mel).numpy(), slow, atol=1e-5)


@pytest.mark.filterwarnings("error")
def test_one_or_two_frames_make_no_features():
    """One has no deviation as a sample."""
    assert normalised(torch.rand(1, 40)).shape == (0, 40)
    assert features(torch.rand(201)).shape == (0, 40)


def test_silence_has_features_of_zero_and_a_click_has_none():
    assert torch.equal(features(torch.zeros(4800)), torch.zeros(10, 40))
    assert features(torch.ones(200)).shape == (0, 40)


def of_lengths(lengths, texts, num_train=None):
    ids = [torch.tensor(encode(text), dtype=torch.uint8) for text in texts]
    lengths = torch.tensor(lengths)
    return Utterances(
        torch.randn(int(lengths.sum()), 40),
        lengths.cumsum(0) - lengths,
        lengths,
        torch.nn.utils.rnn.pad_sequence(ids, batch_first=True),
        torch.tensor([len(each) for each in ids]),
        len(texts) if num_train is None else num_train,
    )


def test_gathered_utterances_are_padded_with_zeros():
    pool = of_lengths([2, 4, 3], ["a", "b", "c"])

    frames, lengths = pool.gather(torch.tensor([2, 0]), 4)

    assert lengths.tolist() == [3, 2]
    assert torch.equal(frames[0], torch.cat([pool.frames[6:9], torch.zeros(1, 40)]))
    assert torch.equal(frames[1], torch.cat([pool.frames[0:2], torch.zeros(2, 40)]))


def test_what_no_alignment_fits_is_left_out():
    """Exactly the utterances whose CTC loss is infinite: "all" needs four frames."""
    texts = ["all", "all", "add", "ox", "ox", "a"]
    pool = of_lengths([3, 4, 9, 1, 2, 1], texts, num_train=3)
    uniform = torch.zeros(9, 6, 30).log_softmax(-1)
    losses = ctc_loss(
        uniform, pool.targets.long(), pool.lengths, pool.target_lengths, reduction="none"
    )

    kept = pool.kept(float("inf"))

    assert torch.equal(kept.starts, pool.starts[torch.isfinite(losses)])
    assert kept.num_train == 2
    assert pool.kept(8).lengths.tolist() == [4, 2, 1]


def test_the_first_utterances_are_the_same_however_many_follow():
    few = synthesised_speech.utterances(3, 2, 0.1)
    torch.manual_seed(1)
    more = synthesised_speech.utterances(60, 2, 0.1)

    assert len(more) == 60
    assert torch.equal(few.frames, more.frames[: len(few.frames)])
    assert torch.equal(few.lengths, more.lengths[:3])
    assert torch.equal(few.targets, more.targets[:3, : few.targets.shape[1]])


def test_synthesised_utterances_are_words_that_an_alignment_fits():
    """Rows of `frames` belong to one utterance each, and texts are one or two words."""
    pool = synthesised_speech.utterances(60, 2, 0.1)
    texts = [
        "".join(CHARACTERS[id_] for id_ in row[:length])
        for row, length in zip(pool.targets.tolist(), pool.target_lengths.tolist(), strict=True)
    ]

    assert {len(text.split(" ")) for text in texts} == {1, 2}
    assert {word for text in texts for word in text.split(" ")} <= set(synthesised_speech.WORDS)
    assert int(pool.lengths.sum()) == len(pool.frames)
    assert len(pool.kept(float("inf"))) == 60
    assert torch.isfinite(pool.frames).all()


def test_a_default_device_of_the_caller_changes_nothing(home):
    """`meta` holds no numbers: whatever were made there would be lost, or refused as mixed."""
    write_folder(home)
    mel_filters.cache_clear()
    with torch.device("meta"):
        made, read = synthesised_speech.utterances(4, 1, 0.1), librispeech.utterances()

    mel_filters.cache_clear()
    synthesised_speech.utterances.cache_clear()
    again = synthesised_speech.utterances(4, 1, 0.1)
    assert torch.equal(made.frames, again.frames)
    assert torch.equal(made.targets, again.targets)
    for pool in (made, read):
        for each in (pool.frames, pool.starts, pool.lengths, pool.targets, pool.target_lengths):
            assert each.device.type == "cpu"


def test_every_letter_is_spoken_in_some_word():
    assert set("".join(synthesised_speech.WORDS)) == set(CHARACTERS[3:])


@pytest.mark.parametrize("write", [write_folder, write_parquet])
def test_librispeech_is_read_from_its_archives_and_from_parquet(home, write):
    write(home)
    assert librispeech.missing() == []

    pool = librispeech.utterances()

    texts = [text for split in TEXTS.values() for text in split.values()]
    for n, (sound, text) in enumerate(zip(waves().values(), texts, strict=True)):
        frames, _ = pool.gather(torch.tensor([n]), int(pool.lengths[n]))
        assert torch.equal(frames[0], features(torch.from_numpy(sound).float() / 2**15))
        assert pool.targets[n, : pool.target_lengths[n]].tolist() == encode(text)
    assert pool.num_train == 3
    assert len(pool) == 4


def test_features_are_computed_once_per_data_folder(home):
    """The second time no sound is read: the files are gone. Those of a table would be the same."""
    files = write_folder(home)
    first = librispeech.utterances()
    for file in files:
        file.unlink()

    assert torch.equal(librispeech.utterances().frames, first.frames)
    shutil.rmtree(home / "librispeech")
    write_parquet(home, damaged="1034-121119-0000")
    assert torch.equal(librispeech.utterances().frames, first.frames)


@pytest.mark.parametrize("write", [write_folder, write_parquet])
def test_a_part_of_the_data_set_is_refused(home, write, monkeypatch):
    """The second split here; training on a part of the first would be as silent."""
    write(home)
    monkeypatch.setattr(librispeech, "NUM_UTTERANCES", {**COUNTS, "validation": 2703})
    here = home / "librispeech"
    archive = f"{here / 'LibriSpeech' / 'dev-clean'}: expected 2,703 utterances, got 1. Unpack the "
    table = (
        f"{here / 'clean' / 'validation' / '0000.parquet'}: expected 2,703 utterances, got 1. "
        f"Download it again: {data.SETS['librispeech'].command(here)}"
    )

    with pytest.raises(data.CorruptDataError) as caught:
        librispeech.utterances()

    assert str(caught.value) == (
        f"{archive}archive dev-clean again" if write is write_folder else table
    )


def unwritable(folder):
    """As it is for everyone, the superuser included: a file stands where the folder should be."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("")
    return folder


def test_features_go_below_the_home_folder_where_the_data_may_only_be_read(home):
    write_folder(home)
    unwritable(home / "features")

    librispeech.utterances()

    (stored,) = Path.home().glob(".cache/spectral-sweeps/features/librispeech-*")
    assert {file.name for file in stored.iterdir()} == {"frames.f32", "lengths.npy"}


def test_features_beside_the_data_are_found_where_nothing_may_be_written(home):
    files = write_folder(home)
    first = librispeech.utterances()
    for file in files:
        file.unlink()
    (home / "features").chmod(0o555)
    unwritable(Path.home() / ".cache" / "spectral-sweeps" / "features")

    assert torch.equal(librispeech.utterances().frames, first.frames)


def test_features_that_can_be_written_nowhere_are_an_error(home):
    write_folder(home)
    here = unwritable(home / "features")
    there = unwritable(Path.home() / ".cache" / "spectral-sweeps" / "features")

    with pytest.raises(TaskError) as caught:
        librispeech.utterances()

    assert str(caught.value) == (
        f"the features of librispeech cannot be written to {here} or {there}. Allow that, or name "
        "another folder with the data set in the sweep file's `data:` or in $SPECTRAL_SWEEPS_DATA"
    )


def stored(home):
    (found,) = (home / "features").glob("librispeech-*")
    return found


def test_features_that_were_cut_short_are_named(home):
    write_folder(home)
    expected = 4 * librispeech.utterances().frames.numel()
    with (stored(home) / "frames.f32").open("r+b") as file:
        file.truncate(1000)

    with pytest.raises(data.CorruptDataError) as caught:
        librispeech.utterances()

    assert str(caught.value) == (
        f"{stored(home) / 'frames.f32'} cannot be read: expected {expected} bytes, got 1000. "
        f"Remove {stored(home)}; the features are then computed anew."
    )


@pytest.mark.parametrize("content", [0, 40, 140, "others"])
def test_lengths_of_features_that_are_damaged_are_named(home, content):
    """Cut to nothing, in the header, in the numbers; or those of another number of utterances."""
    write_folder(home)
    librispeech.utterances()
    file = stored(home) / "lengths.npy"
    if content == "others":
        np.save(file, np.zeros(3, np.int64))
    else:
        file.write_bytes(file.read_bytes()[:content])
    start, end = f"{file} cannot be read: ", f". Remove {stored(home)}; the features are then "

    with pytest.raises(data.CorruptDataError) as caught:
        librispeech.utterances()

    assert str(caught.value).startswith(start)
    assert str(caught.value).endswith(f"{end}computed anew.")


def test_what_a_killed_process_left_behind_is_removed(home):
    """Of this host and these features only: locks need not reach other hosts."""
    write_folder(home)
    librispeech.utterances()
    name = stored(home).name
    shutil.rmtree(stored(home))
    left = home / "features" / f".{name}-{platform.node()}-0123abcd"
    other = home / "features" / f".{name}-elsewhere-0123abcd"
    for folder in (left, other):
        folder.mkdir()
        (folder / "frames.f32").write_bytes(b"some")

    librispeech.utterances()

    assert {path.name for path in (home / "features").iterdir()} == {
        name,
        f".{name}.lock",
        other.name,
    }


def test_trials_that_start_at_once_share_one_file(home):
    write_folder(home)
    with ThreadPoolExecutor(4) as threads:
        pools = [*threads.map(lambda _: librispeech.utterances(), range(4))]

    assert all(torch.equal(pool.frames, pools[0].frames) for pool in pools)
    assert sorted(path.suffix for path in (home / "features").iterdir()) == ["", ".lock"]


def test_a_damaged_file_is_named_and_nothing_is_left_behind(home):
    damaged = write_folder(home)[1]
    damaged.write_bytes(damaged.read_bytes()[:50])

    with pytest.raises(data.CorruptDataError, match="cannot be read") as caught:
        librispeech.utterances()

    assert str(damaged) in str(caught.value)
    assert [path.suffix for path in (home / "features").iterdir()] == [".lock"]


def test_damaged_sound_in_a_table_is_named(home):
    files = write_parquet(home, damaged="1034-121119-0000")
    file = files["1034-121119-0000"]
    where = f"{file}, split train.100, utterance 1034-121119-0000 cannot be read: "
    assert file.name == "0000.parquet"

    with pytest.raises(data.CorruptDataError, match=f"^{re.escape(where)}"):
        librispeech.utterances()


def test_a_row_without_sound_is_named(home):
    """In the second file: the row is counted from the beginning of the first."""
    files = write_parquet(home, damaged="103-1240-0001", content=None)
    file = files["103-1240-0001"]
    assert file.name == "0001.parquet"

    with pytest.raises(data.CorruptDataError) as caught:
        librispeech.utterances()

    assert str(caught.value) == (
        f"{file}, split train.100, utterance 103-1240-0001: there is no sound, and no path of a "
        "file with it. Download the data set again."
    )


def test_a_file_that_is_cut_short_is_named(home):
    """FLAC says how long it is; half of it decodes without an error."""
    cut = write_folder(home)[0]
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])

    with pytest.raises(data.CorruptDataError, match=re.escape(str(cut))):
        librispeech.utterances()


def test_sound_of_another_rate_is_refused(tmp_path):
    path = tmp_path / "fast.flac"
    soundfile.write(path, np.zeros((800, 2), np.int16), 44_100)
    message = f"{path}: expected one channel of 16000 samples per second, got 2 of 44100"

    with pytest.raises(data.CorruptDataError, match=f"^{re.escape(message)}$"):
        read_sound(path, str(path))


def test_missing_librispeech_says_which_forms_are_read(home):
    (problem,) = librispeech.missing()

    assert problem.startswith(
        f"data set librispeech is not on this machine: looked in {home / 'librispeech'}."
    )
    assert problem.endswith(
        " The unpacked archives train-clean-100 and dev-clean are read too, from "
        f"{home / 'librispeech' / 'LibriSpeech'}."
    )
    with pytest.raises(data.MissingDataError, match=re.escape(problem)):
        librispeech.utterances()
