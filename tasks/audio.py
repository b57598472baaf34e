"""Sound as frames of features, and the reading of sound files.

Features are those of the paper's recogniser (Yunis et al.): a mel power spectrogram without
logarithm, normalised in each utterance, every three frames averaged. The filters are computed here
and not by librosa, whose import takes seconds; tests hold both against each other.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tasks.data import CorruptDataError

SAMPLE_RATE = 16_000
"""Samples per second of every waveform."""
WINDOW, HOP, MELS, AVERAGED = 400, 160, 40, 3
"""Samples of a window and between windows, mel bands, frames that become one."""
FRAMES_PER_SECOND = SAMPLE_RATE / (HOP * AVERAGED)

_SILENCE = 1e-10  # what is smaller than this has no spread to divide by


@functools.cache
def mel_filters() -> Tensor:
    """Triangles between points equally spaced on the mel scale, each of area one.

    HTK's scale, mel(f) = 2595 log10(1 + f / 700); Slaney's normalisation, 2 / (upper - lower edge
    in Hz). As `librosa.filters.mel(sr=16000, n_fft=400, n_mels=40, htk=True, norm="slaney")`.

    Returns:
        float32 [201, 40], 1/Hz: a power spectrum from 0 to 8 kHz times this is a mel spectrum.
    """
    top = 2595.0 * math.log10(1.0 + SAMPLE_RATE / 2 / 700.0)
    # A caller may be working under a default device, and what is kept here is for all of them.
    with torch.device("cpu"):
        mel = torch.linspace(0.0, top, MELS + 2, dtype=torch.float64)
        bins = torch.linspace(0.0, SAMPLE_RATE / 2, WINDOW // 2 + 1, dtype=torch.float64)[:, None]
    edge = 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
    lower, centre, upper = edge[:-2], edge[1:-1], edge[2:]
    rising = (bins - lower) / (centre - lower)
    falling = (upper - bins) / (upper - centre)
    triangles = torch.minimum(rising, falling).clamp(min=0.0)
    return (triangles * 2.0 / (upper - lower)).float()


def mel_spectrogram(wave: Tensor) -> Tensor:
    """Mel power spectrogram: Hann windows of 400 samples every 160, centred, edges reflected.

    Args:
        wave: float32 [..., samples], more than 200 samples, 16 kHz.

    Returns:
        float32 [..., 1 + samples // 160, 40], the square of the waveform's unit per Hz.
    """
    spectrum = torch.stft(
        wave,
        WINDOW,
        HOP,
        window=torch.hann_window(WINDOW, device=wave.device),
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )
    power = spectrum.real.square() + spectrum.imag.square()
    return power.mT @ mel_filters().to(wave.device)


def normalised(mel: Tensor) -> Tensor:
    """Each band of one utterance to mean 0 and standard deviation 1, then means of 3 frames.

    The deviation is that of a sample, with frames - 1 in the denominator, as the paper's.

    Args:
        mel: float32 [frames, 40].

    Returns:
        float32 [frames // 3, 40]; one or two frames at the end are left out. A band that does not
        change becomes 0.
    """
    # One frame has no deviation as a sample; as a population it has 0, and becomes 0.
    spread = mel.std(0, correction=0 if len(mel) == 1 else 1).clamp_min(_SILENCE)
    mel = (mel - mel.mean(0)) / spread
    whole = len(mel) // AVERAGED
    return mel[: whole * AVERAGED].reshape(whole, AVERAGED, mel.shape[1]).mean(1)


def features(wave: Tensor) -> Tensor:
    """What a recogniser reads of one utterance.

    Args:
        wave: float32 [samples], 16 kHz.

    Returns:
        float32 [frames, 40], 33.3 frames per second; none if there are 200 samples or fewer.
    """
    if len(wave) <= WINDOW // 2:
        return torch.zeros(0, MELS, device=wave.device)
    return normalised(mel_spectrogram(wave))


@dataclass(frozen=True)
class Utterances:
    """N utterances: features of all of them one after the other, and what is said.

    Attributes:
        frames: float32 [F, 40].
        starts: int64 [N], first row of each utterance in `frames`.
        lengths: int64 [N], its rows.
        targets: uint8 [N, S], ids of its characters, 0 behind the end.
        target_lengths: int64 [N].
        num_train: the first so many are for training; the others, if any, for validation.
    """

    frames: Tensor
    starts: Tensor
    lengths: Tensor
    targets: Tensor
    target_lengths: Tensor
    num_train: int

    def __len__(self) -> int:
        return len(self.starts)

    @functools.cached_property
    def longest(self) -> int:
        """Frames of the longest utterance."""
        return int(self.lengths.max())

    @functools.cached_property
    def longest_train(self) -> int:
        """Frames of the longest utterance for training."""
        return int(self.lengths[: self.num_train].max())

    def to(self, device: torch.device) -> Utterances:
        """The same utterances on another device."""
        return Utterances(
            self.frames.to(device),
            self.starts.to(device),
            self.lengths.to(device),
            self.targets.to(device),
            self.target_lengths.to(device),
            self.num_train,
        )

    def kept(self, max_frames: float) -> Utterances:
        """Without those that are longer, and those that no alignment fits.

        CTC emits one character per frame at most, and a blank between two equal ones: an utterance
        with fewer frames than that has an infinite loss.
        """
        repeats = (self.targets[:, 1:] == self.targets[:, :-1]) & (self.targets[:, 1:] != 0)
        needed = (self.target_lengths + repeats.sum(1)).clamp_min(1)
        keep = (self.lengths <= max_frames) & (self.lengths >= needed)
        return Utterances(
            self.frames,
            self.starts[keep],
            self.lengths[keep],
            self.targets[keep],
            self.target_lengths[keep],
            int(keep[: self.num_train].sum()),
        )

    def gather(self, which: Tensor, num_frames: int) -> tuple[Tensor, Tensor]:
        """Features of some utterances, padded with zeros.

        Args:
            which: int64 [n].
            num_frames: of each, at least as many as the longest of them has.

        Returns:
            (float32 [n, num_frames, 40], lengths int64 [n]).
        """
        lengths = self.lengths[which]
        frame = torch.arange(num_frames, device=which.device)
        inside = frame < lengths[:, None]
        rows = (self.starts[which][:, None] + frame).clamp_max(len(self.frames) - 1)
        return self.frames[rows] * inside[:, :, None], lengths


def missing_readers() -> list[str]:
    """What keeps this machine from reading sound files."""
    if importlib.util.find_spec("soundfile") is not None:
        return []
    return [
        "the package `soundfile` that reads sound files is not installed: "
        "pip install 'spectral-sweeps[data]'"
    ]


def read_sound(source: Path | bytes, name: str) -> Tensor:
    """The waveform of a FLAC or WAV file.

    Args:
        source: the file, or its content.
        name: what an error calls it.

    Returns:
        float32 [samples], in [-1, 1], one channel, 16 kHz.

    Raises:
        CorruptDataError: it cannot be decoded, or is not of that form.
    """
    import soundfile

    try:
        wave, rate = soundfile.read(
            io.BytesIO(source) if isinstance(source, bytes) else source, dtype="float32"
        )
    except (soundfile.SoundFileError, OSError) as error:
        raise CorruptDataError(
            f"{name} cannot be read: {error}. Remove it and download it again."
        ) from error
    if rate != SAMPLE_RATE or wave.ndim != 1:
        channels = 1 if wave.ndim == 1 else wave.shape[1]
        raise CorruptDataError(
            f"{name}: expected one channel of {SAMPLE_RATE} samples per second, got {channels} of "
            f"{rate}"
        )
    return torch.from_numpy(wave)
