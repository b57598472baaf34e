"""Small LibriSpeech folders in both of the forms that are read."""

import io

import numpy as np
import soundfile

TEXTS = {
    "train.100": {
        "103-1240-0000": "CHAPTER ONE",
        "103-1240-0001": "IT'S A LONG ROAD",
        "1034-121119-0000": "NO",
    },
    "validation": {"84-121123-0000": "GO ON"},
}
COUNTS = {split: len(texts) for split, texts in TEXTS.items()}
FOLDERS = {"train.100": "train-clean-100", "validation": "dev-clean"}


def wave(number, samples):
    """A chirp under noise, different for each number; int16 as FLAC keeps it without loss."""
    time = np.arange(samples) / 16_000
    noise = np.random.default_rng(number).normal(size=samples)
    return (
        4000 * np.sin(2 * np.pi * (200 + 300 * number + 900 * time) * time) + 200 * noise
    ).astype(np.int16)


def waves():
    """Utterance id -> its sound, from half a second to more than one."""
    ids = [id_ for texts in TEXTS.values() for id_ in texts]
    return {id_: wave(n, 16_000 + 4321 * n) for n, id_ in enumerate(ids)}


def write_folder(home):
    """The archives as they are unpacked; returns the sound files."""
    files = []
    for split, texts in TEXTS.items():
        for id_, text in texts.items():
            speaker, chapter, _ = id_.split("-")
            folder = home / "librispeech" / "LibriSpeech" / FOLDERS[split] / speaker / chapter
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / f"{speaker}-{chapter}.trans.txt").open("a") as file:
                file.write(f"{id_} {text}\n")
            files.append(folder / f"{id_}.flac")
            soundfile.write(files[-1], waves()[id_], 16_000)
    return files


def write_parquet(home, damaged=None, content=b"fLaC"):
    """The files of the hub: sound as bytes in a column of type Audio; one may be no sound.

    Rows in the opposite order of `TEXTS`: the files of the hub are not sorted. The first row of a
    split is in a file of its own. Returns the file of every utterance.
    """
    from datasets import Audio, Dataset

    files = {}
    for split, texts in TEXTS.items():
        rows = []
        for id_, text in reversed(texts.items()):
            file = io.BytesIO()
            soundfile.write(file, waves()[id_], 16_000, format="FLAC")
            audio = {"bytes": file.getvalue(), "path": f"{id_}.flac"}
            if id_ == damaged:
                audio = {"bytes": content, "path": None}
            rows.append({"file": f"{id_}.flac", "audio": audio, "text": text, "id": id_})
        folder = home / "librispeech" / "clean" / split
        folder.mkdir(parents=True)
        for number, some in enumerate(filter(None, (rows[:1], rows[1:]))):
            file = folder / f"{number:04}.parquet"
            table = Dataset.from_list(some).cast_column("audio", Audio(decode=False))
            table.to_parquet(str(file))
            files |= {row["id"]: file for row in some}
    return files
