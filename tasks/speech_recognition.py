"""Speech recognition: from the sound of an utterance to its letters, without knowing where each is.

A bidirectional LSTM labels every frame with a letter or a blank; connectionist temporal
classification (CTC) sums over all ways to place the letters.

Source: Yunis et al., arXiv 2408.11804, section 3; Graves et al., "Connectionist temporal
classification", ICML 2006.
"""

from __future__ import annotations

import functools
import math
import sys
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from spectral.views import Coupling, CouplingEnd, MatrixView
from tasks import data, librispeech, synthesised_speech
from tasks.audio import FRAMES_PER_SECOND, MELS, Utterances
from tasks.config import TrainingConfig
from tasks.losses import number_of
from tasks.models.lstm import BidirectionalLSTM
from tasks.random import Streams, initialise_
from tasks.task import Batch, Forward, Task, TaskError
from tasks.transcripts import BLANK, CHARACTERS, edit_distances, greedy, word_errors

_OF_SYNTHESIS = ("num_utterances", "max_words", "noise_level", "train_fraction")


class SpeechRecognitionConfig(TrainingConfig):
    """Defaults of the model are the paper's; the data are small ones that need no download."""

    streams: ClassVar[tuple[str, ...]] = ("init", "split", "order")

    data: Literal["synthesised", "librispeech"] = "synthesised"
    """utterances of a synthesiser of ours, or train-clean-100 and dev-clean of LibriSpeech"""
    num_utterances: Annotated[int, Field(ge=2, le=1_000_000)] = 2000
    """synthesised: utterances, the same first ones for every trial"""
    max_words: Annotated[int, Field(ge=1, le=20)] = 3
    """synthesised: words of the longest utterances"""
    noise_level: Annotated[float, Field(ge=0)] = 0.1
    """synthesised: amplitude of white noise, relative to the voice"""
    train_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """synthesised: part of the utterances that is trained on, rounded down; the rest is val"""
    max_seconds: Annotated[float, Field(gt=0)] | None = None
    """longer utterances are left out, of both splits; none: no limit"""
    train_examples: Annotated[int, Field(ge=1)] = 1000
    """training utterances that the metrics of `train` are taken on; all, if there are fewer"""
    hidden: Annotated[int, Field(ge=1)] = 256
    """width of one direction of a layer"""
    layers: Annotated[int, Field(ge=1)] = 4
    """bidirectional layers"""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """utterances per step"""

    @model_validator(mode="after")
    def _data_fit(self) -> Self:
        problems = []
        if self.data == "librispeech":
            for name in _OF_SYNTHESIS:
                value = getattr(self, name)
                if value != type(self).model_fields[name].default:
                    problems.append(
                        f"{name} ({value}) has no effect with data: librispeech; leave it out"
                    )
        else:
            train = math.floor(self.train_fraction * self.num_utterances)
            if self.batch_size > train:
                problems.append(
                    f"batch_size ({self.batch_size}) exceeds the {train} training utterances: "
                    f"train_fraction ({self.train_fraction}) of num_utterances "
                    f"({self.num_utterances})"
                )
        if self.batch_size % self.micro_batches:
            problems.append(
                f"micro_batches ({self.micro_batches}) does not divide batch_size "
                f"({self.batch_size})"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self


class SpeechRecognition(Task):
    """Utterances to characters, by CTC.

    Every utterance is padded with zeros to the longest one, and the padding is read like sound, as
    in the paper: without it, the reverse direction would start elsewhere. Loss, decoding and
    metrics look at the frames of the utterance only.

    Metrics on train (a fixed part of it) and val:
    `loss`, the mean over utterances of CTC's negative log-likelihood in nats per character;
    `cer` and `wer`, edit distances between the greedy transcripts and the true ones, summed over
    utterances, divided by the summed lengths of the true ones, in characters (spaces included) and
    in words: 0 at best; may exceed 1.
    """

    Config = SpeechRecognitionConfig
    name = "speech_recognition"
    stackable = False
    config: SpeechRecognitionConfig

    def __init__(self, configs: Any) -> None:
        super().__init__(configs)
        # About 35,000 frames at once, of up to 33 s or a few: half a gigabyte at hidden: 256.
        self.eval_chunk = 32 if self.config.data == "librispeech" else 512
        self._pools: dict[torch.device, Utterances] = {}  # of each device, looked up at every step

    @classmethod
    def missing(cls, config: SpeechRecognitionConfig) -> list[str]:
        """For LibriSpeech, the files or the package that reads them."""
        return librispeech.missing() if config.data == "librispeech" else []

    def build(self, streams: Streams) -> nn.Module:
        """The LSTM, 40 features to 30 characters (blank and <unk> among them)."""
        c = self.config
        return initialise_(BidirectionalLSTM(MELS, c.hidden, c.layers, len(CHARACTERS)), streams)

    def batch(self, streams: Streams, step: int, micro: int) -> Batch:
        """Which utterances, in the order of the `order` stream: int64 [K, examples]."""
        c = self.config
        train = self._numbers(streams, "train")
        size = c.batch_size // c.micro_batches
        chosen = streams.examples(step, train.shape[1], c.batch_size)
        return {"utterance": train.gather(1, chosen[:, micro * size : (micro + 1) * size])}

    def loss(self, forward: Forward, batch: Batch) -> tuple[Tensor, Tensor]:
        """CTC per character, summed over utterances, and their number."""
        which = batch["utterance"]
        pool = self._pool(which.device)
        logits, lengths = self._logits(forward, which, pool.longest_train)
        losses = self._losses(logits, lengths, which)
        return losses.sum(), number_of(losses)

    def eval_data(self, streams: Streams, split: str) -> Batch:
        """Which utterances: int64 [K, examples]; of train, the first `train_examples`."""
        limit = self.config.train_examples if split == "train" else None
        return {"utterance": self._numbers(streams, split)[:, :limit]}

    def evaluate(self, forward: Forward, data: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Sums of losses, of errors and of lengths over the utterances."""
        which = data["utterance"]
        pool = self._pool(which.device)
        logits, lengths = self._logits(forward, which, pool.longest)
        losses = self._losses(logits, lengths, which)
        heard, heard_lengths = greedy(logits, lengths)
        said, said_lengths = pool.targets[which].long(), pool.target_lengths[which]
        wrong = edit_distances(heard, heard_lengths, said, said_lengths)
        wrong_words, num_words = word_errors(heard, heard_lengths, said, said_lengths)
        return {
            "loss": (losses.double().sum(), number_of(losses)),
            "cer": (wrong.double().sum(), said_lengths.sum()),
            "wer": (wrong_words.double().sum().to(which.device), num_words.sum()),
        }

    def views(self, model: nn.Module) -> list[MatrixView]:
        """Every weight whole, its four gates together, in the order of the parameters.

        After a weight that reads both directions, the columns that couplings meet: `NAME[forward]`,
        the first `hidden` of them, or `NAME[reverse]`, the others; of `linear` both.
        """
        h = self.config.hidden
        met = {coupling.second.view for coupling in self.couplings(model)}
        found = []
        for parameter, value in model.named_parameters():
            if value.dim() != 2:
                continue
            name = parameter.removeprefix("lstm.").removesuffix(".weight")
            halves = [
                MatrixView(f"{name}[forward]", parameter, columns=(0, h)),
                MatrixView(f"{name}[reverse]", parameter, columns=(h, 2 * h)),
            ]
            found += [MatrixView(name, parameter), *(half for half in halves if half.name in met)]
        return found

    def couplings(self, model: nn.Module) -> list[Coupling]:
        """The cell candidates (gate g) of a layer and what reads them, within one direction.

        Per layer and direction ih -> hh, ih -> next ih, hh -> next ih; from the last layer ih and
        hh -> linear. A layer's forward outputs are the first half of the next one's inputs, its
        reverse outputs the second: the next matrix is cut to these columns and then decomposed, so
        its right vectors are whole, of length `hidden`. Squares of the inner products of random
        vectors are 1 / (4 hidden) on average, hence `length`.

        Source: Yunis et al., arXiv 2408.11804 (their code), which cuts `linear` to the first half
        for both directions.
        """
        h, last = self.config.hidden, self.config.layers - 1
        found = []
        for layer in range(self.config.layers):
            for suffix, half in (("", "forward"), ("_reverse", "reverse")):
                ih, hh = (f"weight_{kind}_l{layer}{suffix}" for kind in ("ih", "hh"))
                after = "linear" if layer == last else f"weight_ih_l{layer + 1}{suffix}"
                gates = [CouplingEnd(name, "left", entries=(2 * h, 3 * h)) for name in (ih, hh)]
                if layer < last:
                    found.append(Coupling(gates[0], CouplingEnd(hh, "right"), length=4 * h))
                reader = CouplingEnd(f"{after}[{half}]", "right")
                for gate in gates:
                    # Without brackets: figures leave out names that have them (parts of matrices).
                    name = f"{gate.view}->{after}"
                    found.append(Coupling(gate, reader, length=4 * h, name=name))
        return found

    def _logits(self, forward: Forward, which: Tensor, frames: int) -> tuple[Tensor, Tensor]:
        features, lengths = self._pool(which.device).gather(which, frames)
        dtype = self.config.dtype
        return forward(features.to(dtype)).to(dtype), lengths

    def _losses(self, logits: Tensor, lengths: Tensor, which: Tensor) -> Tensor:
        pool = self._pool(which.device)
        target_lengths = pool.target_lengths[which]
        losses = nn.functional.ctc_loss(
            logits.log_softmax(-1).transpose(0, 1),
            pool.targets[which].long(),
            lengths,
            target_lengths,
            blank=BLANK,
            reduction="none",
        )
        return losses / target_lengths.clamp_min(1)

    def _pool(self, device: torch.device) -> Utterances:
        if device not in self._pools:
            c = self.config
            synthesis = tuple(getattr(c, name) for name in _OF_SYNTHESIS[:3])
            source = str(data.folder()) if c.data == "librispeech" else synthesis
            # "cuda" and "cuda:0" are one device, and one copy of the data is enough for it.
            same = torch.empty(0, device=device).device
            self._pools[device] = _pool(source, c.max_seconds, same)
        return self._pools[device]

    def _numbers(self, streams: Streams, split: str) -> Tensor:
        """The utterances of a split in the order of the `split` stream, int64 [K, n]."""
        c = self.config

        def make() -> dict[str, Tensor]:
            pool = self._pool(streams.device)
            order = streams.permutation("split", 0, pool.num_train)
            if c.data == "librispeech":
                others = torch.arange(pool.num_train, len(pool), device=streams.device)
                numbers = {"train": order, "val": others.expand(len(streams), -1)}
            else:
                cut = math.floor(c.train_fraction * pool.num_train)
                numbers = {"train": order[:, :cut], "val": order[:, cut:]}
            sizes = {name: t.shape[1] for name, t in numbers.items()}
            if sizes["train"] < c.batch_size or sizes["val"] == 0:
                raise TaskError(
                    f"{sizes['train']} utterances for training and {sizes['val']} for val are not "
                    f"longer than max_seconds ({c.max_seconds}); batches of {c.batch_size} need "
                    "more: raise it"
                )
            return numbers

        key = ("speech_recognition", c.data, c.num_utterances, c.max_words, c.noise_level)
        return streams.remember((*key, c.train_fraction, c.max_seconds, c.batch_size), make)[split]


@functools.lru_cache(maxsize=1)
def _pool(
    source: str | tuple[Any, ...], max_seconds: float | None, device: torch.device
) -> Utterances:
    """All utterances of a configuration, on a device; the last one is kept for trials to come."""
    everything = (
        librispeech.utterances()
        if isinstance(source, str)
        else synthesised_speech.utterances(*source)
    )
    kept = everything.kept(math.inf if max_seconds is None else max_seconds * FRAMES_PER_SECOND)
    if out := len(everything) - len(kept):
        limit = "" if max_seconds is None else f"longer than {max_seconds} s or "
        print(
            f"speech_recognition: {out} of {len(everything)} utterances are left out: {limit}with "
            "more characters than frames",
            file=sys.stderr,
        )
    return kept.to(device)
