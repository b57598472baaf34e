"""Greedy decoding and edit distances."""

import functools

import torch

from tasks.transcripts import CHARACTERS, edit_distances, encode, greedy, padded, word_errors


def levenshtein(first, second):
    """The definition, by recursion."""

    @functools.cache
    def distance(a, b):
        if a == 0 or b == 0:
            return a + b
        change = distance(a - 1, b - 1) + (first[a - 1] != second[b - 1])
        return min(change, distance(a - 1, b) + 1, distance(a, b - 1) + 1)

    return distance(len(first), len(second))


def test_there_are_thirty_ids_and_an_unknown_character_has_one():
    """28 characters, the blank and <unk>: "z" is 29, for which the paper's code has no output."""
    assert len(CHARACTERS) == 30
    assert encode("aZ' ?") == [4, 29, 3, 2, 1]


def test_edit_distances_are_levenshtein_s():
    """Random sequences over three symbols, empty ones among them; what is behind an end is
    random too."""
    first, second = (torch.randint(1, 4, (200, n)) for n in (7, 9))
    lengths = [torch.randint(0, t.shape[1] + 1, (200,)) for t in (first, second)]

    found = edit_distances(first, lengths[0], second, lengths[1])

    slow = [
        levenshtein(tuple(a[:m]), tuple(b[:n]))
        for a, m, b, n in zip(
            first.tolist(), lengths[0].tolist(), second.tolist(), lengths[1].tolist(), strict=True
        )
    ]
    assert found.tolist() == slow


def labels(text):
    """Logits whose largest entry spells a text, one frame per character, "_" for the blank."""
    ids = [0 if character == "_" else encode(character)[0] for character in text]
    return torch.eye(30)[torch.tensor(ids)]


def test_greedy_merges_repeats_drops_blanks_and_stops_at_the_end():
    logits = torch.stack([labels("aab_bb"), labels("_x__xy"), labels("______")])

    ids, lengths = greedy(logits, torch.tensor([6, 5, 6]))

    assert lengths.tolist() == [3, 2, 0]
    assert ids.tolist() == [encode("abb"), [*encode("xx"), 0], [0, 0, 0]]


def test_word_errors_are_edit_distances_between_words():
    """One word replaced; spaces around and between do not count; nothing heard at all."""
    heard = padded(encode(text) for text in ["the bat sat", "  on  it", ""])
    said = padded(encode(text) for text in ["the cat sat", "on it", "a mat"])

    errors, words = word_errors(*heard, *said)

    assert errors.tolist() == [1, 0, 2]
    assert words.tolist() == [3, 2, 2]
