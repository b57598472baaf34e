"""Transcripts as numbers: characters, greedy decoding of CTC outputs, errors of a transcript."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

BLANK, UNKNOWN, SPACE = 0, 1, 2
CHARACTERS = ("<blank>", "<unk>", " ", "'", *"abcdefghijklmnopqrstuvwxyz")
"""The 30 outputs of a recogniser: id -> character."""

_ID = {character: id_ for id_, character in enumerate(CHARACTERS)}


def encode(text: str) -> list[int]:
    """The ids of a transcript, in lower case; a character that is not in the list is <unk>."""
    return [_ID.get(character, UNKNOWN) for character in text.lower()]


def padded(rows: Iterable[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Rows of unequal length as int64 [N, longest], 0 behind the end, and lengths int64 [N]."""
    tensors = [torch.tensor(row, dtype=torch.int64) for row in rows]
    lengths = torch.tensor([len(row) for row in tensors], dtype=torch.int64)
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True), lengths


def greedy(logits: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The most likely label of each frame, repeats merged, blanks removed.

    Args:
        logits: [N, T, C] of every frame.
        lengths: int64 [N], frames that count.

    Returns:
        (ids, lengths): int64 [N, L], 0 behind the end, and int64 [N].
    """
    best = logits.argmax(-1)
    before = torch.nn.functional.pad(best, (1, 0), value=BLANK)[:, :-1]
    frame = torch.arange(best.shape[1], device=best.device)
    kept = (best != before) & (best != BLANK) & (frame < lengths[:, None])
    count = kept.sum(1)
    order = torch.argsort(~kept, dim=1, stable=True)
    ids = best.gather(1, order).masked_fill(frame >= count[:, None], BLANK)
    return ids[:, : int(count.max())], count


def edit_distances(
    first: Tensor, first_lengths: Tensor, second: Tensor, second_lengths: Tensor
) -> Tensor:
    """Levenshtein distances of N pairs: fewest insertions, deletions and substitutions.

    The rows of the usual table, one per element of `first`, for all pairs at once. Within a row,
    D[j] = min(D[j], D[j - 1] + 1) for j = 1, 2, ... is min over k <= j of (D[k] - k) + j.

    Args:
        first: int64 [N, A], what lies behind the end is ignored.
        first_lengths: int64 [N].
        second: int64 [N, B].
        second_lengths: int64 [N].

    Returns:
        int64 [N].
    """
    place = torch.arange(second.shape[1] + 1, device=second.device)
    row = place.expand(len(second), -1)
    for i in range(first.shape[1]):
        replaced = row[:, :-1] + (first[:, i : i + 1] != second)
        new = torch.cat([row[:, :1] + 1, torch.minimum(replaced, row[:, 1:] + 1)], dim=1)
        new = (new - place).cummin(1).values + place
        row = torch.where((i < first_lengths)[:, None], new, row)
    return row.gather(1, second_lengths[:, None]).squeeze(1)


def words(ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The words between spaces, as numbers: equal words have equal numbers within one table.

    Args:
        ids: int64 [N, L] of characters.
        lengths: int64 [N].

    Returns:
        (numbers, lengths) as `padded` has them, on the CPU; numbers from 1.
    """
    known: dict[tuple[int, ...], int] = {}
    rows = []
    for row, length in zip(ids.tolist(), lengths.tolist(), strict=True):
        line: list[int] = []
        word: list[int] = []
        for id_ in [*row[:length], SPACE]:
            if id_ != SPACE:
                word.append(id_)
            elif word:
                line.append(known.setdefault(tuple(word), len(known) + 1))
                word = []
        rows.append(line)
    return padded(rows)


def word_errors(
    first: Tensor, first_lengths: Tensor, second: Tensor, second_lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Edit distances between N pairs of transcripts in words, and the words of each `second`.

    Args and shapes as of `edit_distances`; both results int64 [N], on the CPU.
    """
    width = max(first.shape[1], second.shape[1])
    both = torch.cat([torch.nn.functional.pad(t, (0, width - t.shape[1])) for t in (first, second)])
    numbers, lengths = words(both, torch.cat([first_lengths, second_lengths]))
    n = len(first)
    return edit_distances(numbers[:n], lengths[:n], numbers[n:], lengths[n:]), lengths[n:]
