"""Utterances from a synthesiser of our own, with exact transcripts: speech without a download.

Every letter has a sound of its own: up to two resonances (formants) over the harmonics of a pitch,
and a hiss around a centre frequency. A speaker has a pitch, a vocal tract that scales all
resonances, and a speed; each letter varies in length, loudness and resonances besides, neighbours
overlap, and white noise lies over it all. Some letters (c, k, q; p, t; o, u) are hard to tell apart
except by the word they stand in.

Vowels after Peterson & Barney, "Control methods used in a study of the vowels", JASA 24 (1952);
the other sounds are made up.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from tasks.audio import SAMPLE_RATE, Utterances, features
from tasks.random import Streams
from tasks.transcripts import encode, padded

WORDS = (
    "a about after again all an and any are ask at back be because been big box bring but by call "
    "came can can't cat city come could day did do dog don't down eat eight even every eye far few "
    "find five fix for four from garden girl give go good great green had hand has have he head "
    "help her here high him his home house how i i'm if in into is it it's jazz job joy jump just "
    "keep kind king know large last left let letter life light like line little long look made "
    "make man many may me mix more most move much must my name near never new next nine no not now "
    "number of off old on one only open or other our out over own page paper park people place "
    "play pull put queen question quick quiet rain read red right river road room run said same "
    "saw say school sea see seven she ship side sing six size small so some soon sound south stand "
    "start still stone stop story such summer take tell ten than that the their them then there "
    "these they thing think this those three time to today too tree turn two under up us use very "
    "voice wait walk want was water way we week well went were what when where which white who why "
    "will winter with wood word work world would write year yellow yes you young zebra zero zoo"
).split()


class _Sound(NamedTuple):
    """How a letter sounds: frequencies in Hz, levels relative to a vowel's, length in ms."""

    first: float
    second: float
    voice: float
    hiss: float
    breath: float
    length: float


_SOUNDS = {
    "a": _Sound(730, 1090, 1.0, 0, 0.0, 110),
    "e": _Sound(530, 1840, 1.0, 0, 0.0, 100),
    "i": _Sound(270, 2290, 1.0, 0, 0.0, 100),
    "o": _Sound(570, 840, 1.0, 0, 0.0, 110),
    "u": _Sound(440, 1020, 1.0, 0, 0.0, 100),
    "y": _Sound(330, 2000, 0.8, 0, 0.0, 90),
    "w": _Sound(300, 610, 0.7, 0, 0.0, 80),
    "r": _Sound(490, 1350, 0.6, 0, 0.0, 80),
    "l": _Sound(360, 1500, 0.7, 0, 0.0, 80),
    "m": _Sound(250, 950, 0.6, 0, 0.0, 80),
    "n": _Sound(250, 1400, 0.6, 0, 0.0, 80),
    "b": _Sound(220, 700, 0.5, 800, 0.3, 75),
    "d": _Sound(220, 1700, 0.5, 3600, 0.4, 75),
    "g": _Sound(220, 1300, 0.5, 1900, 0.4, 75),
    "j": _Sound(260, 2100, 0.4, 2900, 0.6, 85),
    "v": _Sound(240, 1150, 0.5, 6300, 0.4, 80),
    "z": _Sound(240, 1600, 0.5, 5400, 0.6, 90),
    "p": _Sound(0, 0, 0.0, 900, 0.7, 75),
    "t": _Sound(0, 0, 0.0, 3900, 0.8, 75),
    "k": _Sound(0, 0, 0.0, 1900, 0.8, 75),
    "c": _Sound(0, 0, 0.0, 2150, 0.8, 80),
    "q": _Sound(0, 0, 0.0, 1600, 0.8, 75),
    "f": _Sound(0, 0, 0.0, 6600, 0.6, 90),
    "h": _Sound(700, 1100, 0.1, 1200, 0.4, 75),
    "s": _Sound(0, 0, 0.0, 5500, 0.9, 100),
    "x": _Sound(0, 0, 0.0, 4600, 0.9, 100),
    "'": _Sound(600, 1500, 0.5, 0, 0.0, 70),
    " ": _Sound(0, 0, 0.0, 0, 0.0, 70),
}

_SEED = 20240821  # utterance i draws from this plus i; nothing of a trial enters
_TOGETHER = 50  # utterances made at once, always so many: products of matrices round by shape
_HARMONICS, _TABLE = 32, 1024  # of the pitch; samples of one period
_RAMP = SAMPLE_RATE // 100  # 10 ms, in which neighbours overlap
_WIDTHS = (90.0, 140.0)  # of the resonances, Hz


@functools.cache
def utterances(count: int, most_words: int, noise_level: float) -> Utterances:
    """The first `count` of an endless list of utterances, the same everywhere and for every trial.

    Args:
        count: how many; all are for training, a trial's own split tells otherwise.
        most_words: an utterance has from one to so many words of `WORDS`.
        noise_level: amplitude of the white noise, relative to a vowel's; each utterance has from
            half to one and a half times this.
    """
    # A caller may be working under a default device; what is made here is always on the CPU.
    with torch.device("cpu"):
        frames, texts = [], []
        for begin in range(0, count, _TOGETHER):
            number = range(_SEED + begin, _SEED + begin + _TOGETHER)
            spoken, waves = speak(Streams(number), most_words, noise_level)
            texts += spoken[: count - begin]
            frames += [features(wave) for wave in waves[: count - begin]]
        targets, target_lengths = padded(encode(text) for text in texts)
        lengths = torch.tensor([len(each) for each in frames])
        return Utterances(
            torch.cat(frames),
            lengths.cumsum(0) - lengths,
            lengths,
            targets.to(torch.uint8),
            target_lengths,
            count,
        )


def speak(streams: Streams, most_words: int, noise_level: float) -> tuple[list[str], list[Tensor]]:
    """One utterance from each of some streams.

    Returns:
        (texts, waves): transcripts, and float32 waveforms of 16 kHz of different lengths.
    """
    texts = _texts(streams, most_words)
    longest = max(len(text) for text in texts)
    voice = streams.uniform("noise", 1, (4,))
    pitch = 90.0 * (2.4 ** voice[:, 0])
    tract = 0.87 + 0.28 * voice[:, 1]
    speed = 0.85 + 0.45 * voice[:, 2]
    noise = noise_level * (0.5 + voice[:, 3])

    table = torch.tensor([_SOUNDS[letter] for text in texts for letter in text])
    owner = torch.tensor([u for u, text in enumerate(texts) for _ in text])
    place = torch.tensor([i for text in texts for i in range(len(text))])
    varied = streams.uniform("noise", 2, (longest, 4))[owner, place] * 2.0 - 1.0
    size = (table[:, 5] * speed[owner] * (1.0 + 0.2 * varied[:, 0]) * SAMPLE_RATE / 1000).long()
    loudness = 1.0 + 0.3 * varied[:, 1]
    resonances = table[:, :2] * tract[owner, None] * (1.0 + 0.05 * varied[:, 2:])
    tone = pitch[owner] * (1.1 - 0.01 * place)

    time = torch.arange(int(size.max()))
    voiced = _voice(tone, resonances, time) * table[:, 2:3]
    hiss = _hiss(streams, owner, place, table[:, 3] * tract[owner], time)
    ends = torch.minimum(time + 1, size[:, None] - time).clamp(0, _RAMP) / _RAMP
    sound = (voiced + hiss * table[:, 4:5]) * loudness[:, None] * (ends * ends * (3 - 2 * ends))
    return texts, _joined(streams, sound, size.tolist(), owner.tolist(), noise)


def _texts(streams: Streams, most_words: int) -> list[str]:
    drawn = streams.uniform("noise", 0, (1 + most_words,), torch.float64)
    counts = (1 + drawn[:, 0] * most_words).long().tolist()
    chosen = (drawn[:, 1:] * len(WORDS)).long().tolist()
    return [
        " ".join(WORDS[i] for i in line[:count]) for line, count in zip(chosen, counts, strict=True)
    ]


def _voice(tone: Tensor, resonances: Tensor, time: Tensor) -> Tensor:
    """Harmonics of a pitch under two resonances, of root mean square one: [letters, samples].

    One period is summed into a table, which is then read at the pitch's speed: one look-up per
    sample in place of a sine per harmonic.
    """
    harmonic = torch.arange(1, _HARMONICS + 1)
    frequency = tone[:, None] * harmonic
    width = torch.tensor(_WIDTHS)
    away = (frequency[:, :, None] - resonances[:, None, :]) / width
    amplitude = torch.exp(-0.5 * away.square()).sum(-1) + 0.02 / harmonic
    amplitude = amplitude / (0.5 * amplitude.square().sum(1, keepdim=True)).sqrt()
    angle = 2.0 * math.pi / _TABLE * torch.arange(_TABLE) * harmonic[:, None]
    period = amplitude @ torch.sin(angle)
    phase = tone[:, None] * (time * (_TABLE / SAMPLE_RATE))
    return period.gather(1, phase.long() % _TABLE)


def _hiss(streams: Streams, owner: Tensor, place: Tensor, centre: Tensor, time: Tensor) -> Tensor:
    """White noise, smoothed over 8 samples and moved to a centre frequency, of rms about one."""
    smoothed = 8
    hiss = torch.zeros(len(owner), len(time))
    heard = centre > 0
    # A stretch of the utterance's own noise for every letter, whatever its neighbours are.
    own = _white(streams, 3, SAMPLE_RATE)
    begin = (place[heard] * 1601) % (SAMPLE_RATE // 2)
    white = own[owner[heard, None], begin[:, None] + torch.arange(len(time) + smoothed - 1)]
    slow = white.unfold(1, smoothed, 1).sum(-1) / math.sqrt(smoothed)
    carrier = torch.cos(centre[heard, None] * (2.0 * math.pi / SAMPLE_RATE) * time)
    hiss[heard] = slow * carrier * math.sqrt(2.0)
    return hiss


def _joined(
    streams: Streams, sound: Tensor, size: list[int], owner: list[int], noise: Tensor
) -> list[Tensor]:
    """Letters one after the other, each overlapping the last, under white noise."""
    lead = SAMPLE_RATE // 20
    starts, ends = [], [lead] * len(streams)
    for length, u in zip(size, owner, strict=True):
        starts.append(ends[u] - _RAMP)
        ends[u] += length - _RAMP
    totals = [end + _RAMP + lead for end in ends]
    waves = _white(streams, 4, max(totals)) * noise[:, None]
    for one, begin, length, u in zip(sound, starts, size, owner, strict=True):
        waves[u, begin : begin + length] += one[:length]
    return [wave[:total] for wave, total in zip(waves, totals, strict=True)]


def _white(streams: Streams, step: int, samples: int) -> Tensor:
    """White noise of rms one, uniform: float32 [K, samples], four samples from every hash."""
    drawn = streams.bits("noise", step, (-(-samples // 4),)).view(torch.int16)
    return drawn[:, :samples].float() * (math.sqrt(3.0) / 2**15)
