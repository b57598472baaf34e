"""Language modelling: its model, examples, metrics and views."""

import functools
import math

import pytest
import torch
from pydantic import ValidationError
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from spectral.coupling_checks import check_couplings
from tasks import evaluate, make_streams, start, text, train_step
from tasks.data import MissingDataError
from tasks.language_modeling import LanguageModeling
from tasks.models.transformer import Transformer
from tasks.random import Streams
from tasks.task import TaskError
from tests.tasks import texts
from tests.tasks.initial_ranks import normalised_effective_rank

wikitext, other_folder = texts.wikitext, texts.other_folder

TINY = {"context": 16, "width": 16, "heads": 2, "feed_forward": 20, "layers": 2, "batch_size": 8}
PAPER = LanguageModeling.Config(data="wikitext103", batch_size=256, micro_batches=64)


def group(*configs, seeds=None):
    parsed = [LanguageModeling.Config(**{**TINY, **config}) for config in configs]
    task = LanguageModeling(parsed)
    return task, make_streams(parsed, range(len(parsed)) if seeds is None else seeds)


@functools.cache
def paper_parameters():
    """The parameters of the full size, without memory for their numbers."""
    c = PAPER
    with torch.device("meta"):
        model = Transformer(
            c.tokens, 9, c.width, c.heads, c.feed_forward, c.layers, layer_norm=True, fused=True
        )
    return dict(model.named_parameters())


def test_the_papers_model_has_its_number_of_parameters():
    """119.8 million by default, 50,277 of them an output's bias."""
    embedding, decoder = 50_277 * 768, 50_277 * 769
    attention, feed_forward, norms = 4 * 768 * 769, 2 * 768 * 769, 4 * 768
    total = sum(p.numel() for p in paper_parameters().values())

    assert total == embedding + decoder + 12 * (attention + feed_forward + norms)
    assert round(total / 1e5) == 1198


def test_the_papers_model_has_its_50_matrices_among_the_views():
    """Whole parameters; the thirds and heads of the fused attention matrices come on top."""
    parameters = paper_parameters()
    views = LanguageModeling([PAPER]).views(nn.Identity())
    whole = [view for view in views if view.rows is None and view.columns is None]

    assert len(whole) == 50
    assert {view.parameter for view in whole} == {n for n, p in parameters.items() if p.dim() > 1}
    assert len([view for view in views if not view.on_demand]) == 50 + 12 * 3 * (1 + 12)
    assert len([view for view in views if view.on_demand]) == 12 * 12


def test_the_papers_model_has_its_61_couplings():
    """Heads of a layer's queries and keys counted as one; all of them fit their matrices. Value
    and output per head, which the paper's text has, are one more per layer."""
    task, parameters = LanguageModeling([PAPER]), paper_parameters()
    views, couplings = task.views(nn.Identity()), task.couplings(nn.Identity())
    shapes = {view.name: view.shape(parameters) for view in views}

    assert len({c.group or c.name for c in couplings if not (c.residual or c.per_head)}) == 61
    assert len({c.group or c.name for c in couplings if not c.residual}) == 61 + 12
    assert {c.length for c in couplings if c.per_head} == {64}
    assert check_couplings(views, couplings, shapes) == []


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_fused_attention_is_explicit_attention(dtype, tolerance):
    """Logits and gradients, up to the rounding of sums over at most 70 terms of size one."""
    models = [
        Transformer(11, 70, 32, 4, 24, 2, layer_norm=True, fused=fused).to(dtype)
        for fused in (False, True)
    ]
    models[0].initialise_(Streams([0]))
    models[1].load_state_dict(models[0].state_dict())
    tokens = torch.randint(11, (3, 70))
    results = []
    for model in models:
        logits = model(tokens)
        gradients = torch.autograd.grad(logits.square().mean(), list(model.parameters()))
        results.append([logits, *gradients])

    for explicit, fused in zip(*results, strict=True):
        scale = float(explicit.detach().abs().max())
        torch.testing.assert_close(fused, explicit, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("place", [0, 9, 33, 69])
def test_a_later_token_never_changes_earlier_logits(place):
    """Of the model that the task builds; the later ones do change."""
    task, streams = group({"context": 70, "width": 32, "heads": 4})
    model = task.build(streams[0])
    tokens = torch.randint(1, 37, (2, 70))
    changed = tokens.clone()
    changed[:, place] = 0

    first, second = model(tokens), model(changed)

    assert torch.equal(first[:, :place], second[:, :place])
    assert (first[:, place:] != second[:, place:]).any(-1).all()


def test_layers_start_with_their_own_weights_or_all_with_those_of_the_first():
    own, equal = (
        group({"equal_layers": flag, "layers": 3})[0].build(Streams([5])) for flag in (False, True)
    )

    for name, first in own.layers[0].state_dict().items():
        assert torch.equal(equal.layers[0].state_dict()[name], first)
        assert torch.equal(equal.layers[2].state_dict()[name], first)
        if name.endswith("weight") and "norm" not in name:
            assert not torch.equal(own.layers[2].state_dict()[name], first)


def test_the_papers_matrices_start_with_its_effective_ranks():
    """Of uniform random matrices of their shapes, within 0.005. All 12 layers are drawn alike."""
    streams = make_streams([PAPER], [0])
    config = PAPER.model_copy(update={"layers": 1})
    model = LanguageModeling([config]).build(streams[0])
    found = {
        name: normalised_effective_rank(p) for name, p in model.named_parameters() if p.ndim > 1
    }

    assert found == pytest.approx(
        {
            "embedding.weight": 0.998,
            "layers.0.attention.in_proj_weight": 0.954,
            "layers.0.attention.out_proj.weight": 0.805,
            "layers.0.linear1.weight": 0.805,
            "layers.0.linear2.weight": 0.805,
            "decoder.weight": 0.998,
        },
        abs=0.005,
    )


def test_examples_are_consecutive_and_the_splits_part_the_text():
    """Every chunk of context + 1 tokens is in exactly one of the two, 90 % of them in train."""
    task, streams = group({"train_examples": 10**6}, {"train_examples": 10**6})
    train, val = (task.eval_data(streams, split)["tokens"] for split in ("train", "val"))
    whole = torch.from_numpy(text.corpus("python_docs").tokens.astype("int64"))
    count = len(whole) // 17
    chunks = sorted(map(tuple, whole[: count * 17].reshape(count, 17).tolist()))

    assert train.shape == (2, math.floor(0.9 * count), 17)
    for k in range(2):
        assert sorted(map(tuple, torch.cat([train[k], val[k]]).tolist())) == chunks
    assert not torch.equal(train[0], train[1])


def test_a_fixed_split_seed_gives_every_trial_the_same_split():
    task, streams = group({"split_seed": 4}, {"split_seed": 4})

    for split in task.splits:
        tokens = task.eval_data(streams, split)["tokens"]
        assert torch.equal(tokens[0], tokens[1])


def test_train_metrics_are_taken_on_examples_spaced_evenly_over_the_training_set():
    task, streams = group({"train_examples": 7})
    whole, streams_again = group({"train_examples": 10**6})
    everything = whole.eval_data(streams_again, "train")["tokens"]

    subset = task.eval_data(streams, "train")["tokens"]

    count = everything.shape[1]
    assert torch.equal(subset[0], everything[0, [i * count // 7 for i in range(7)]])


def test_batches_go_through_the_training_set_in_epochs():
    """A short epoch: 2 % of the text in chunks of 257 are 29; 3 steps of 8 in two micro-batches."""
    settings = {"context": 256, "train_fraction": 0.02, "micro_batches": 2}
    task, streams = group(settings)
    train = set(map(tuple, task.eval_data(streams, "train")["tokens"][0].tolist()))
    steps = len(train) // 8
    epochs = []
    for epoch in range(2):
        parts = [task.batch(streams, steps * epoch + s, m) for s in range(steps) for m in range(2)]
        assert {part["tokens"].shape for part in parts} == {(1, 4, 257)}
        epochs.append([tuple(row) for part in parts for row in part["tokens"][0].tolist()])

    assert steps == 3
    for rows in epochs:
        assert len(set(rows)) == 8 * steps
        assert set(rows) <= train
    assert epochs[0] != epochs[1]


def test_loss_and_error_are_means_over_the_tokens():
    """torch's cross-entropy of the model run by itself, on trial 1 of 2; in several slices."""
    settings = {"context": 64, "train_fraction": 0.97, "train_examples": 90}
    task, streams = group(settings, settings)
    model, state = start(task, streams)
    metrics = evaluate(task, model, state, streams)
    solo = task.build(streams[1])

    for split in task.splits:
        tokens = task.eval_data(streams, split)["tokens"][1]
        assert len(tokens) > task.eval_chunk
        logits = solo(tokens[:, :-1]).detach().double().flatten(0, 1)
        labels = tokens[:, 1:].flatten()
        loss = nn.functional.cross_entropy(logits, labels)
        error = (logits.argmax(-1) != labels).double().mean()
        assert float(metrics[split, "loss"][1]) == pytest.approx(float(loss), rel=1e-6)
        # two logits that differ in the last bit may swap with the number of rows of a product
        assert float(metrics[split, "error"][1]) == pytest.approx(float(error), abs=1e-3)


def test_what_is_minimised_is_torchs_mean_cross_entropy():
    task, streams = group({})
    model = task.build(streams[0])
    batch = {name: t[0] for name, t in task.batch(streams, 0, 0).items()}
    total, weight = task.loss(model, batch)

    logits, tokens = model(batch["tokens"][:, :-1]), batch["tokens"]
    expected = nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:])
    torch.testing.assert_close(total / weight, expected)


@pytest.mark.parametrize("own", [{}, {"vocabulary": 128}])
def test_training_learns_more_than_how_often_each_token_occurs(own):
    """Loss on val against the entropy of single tokens, which no guess without context beats."""
    settings = {"lr": 0.02, "batch_size": 32, "layers": 1, "train_examples": 64} | own
    task, streams = group({**settings, "train_fraction": 0.95})
    tokens = text.corpus("python_docs", vocabulary=own.get("vocabulary")).tokens
    shares = torch.from_numpy(tokens.astype("int64")).bincount().double() / len(tokens)
    entropy = float(-shares.xlogy(shares).sum())
    model, state = start(task, streams)
    for _ in range(80):
        train_step(task, model, state, streams)

    assert float(evaluate(task, model, state, streams)["val", "loss"]) < entropy - 0.2


def test_the_full_size_is_evaluated_four_examples_at_a_time():
    """Their logits are 4 x 2048 x 50,277 numbers, 1.6 GB in float32."""
    assert LanguageModeling([PAPER]).eval_chunk == 4
    assert group({})[0].eval_chunk == 64


SMALL = {"data": "wikitext103", "width": 2, "heads": 1, "feed_forward": 2, "layers": 1}


def test_wikitext_is_trained_on_and_validated_on_its_own_splits(wikitext):
    """All chunks of validation for every trial, in all 50,277 tokens of the model."""
    own = {**SMALL, "context": 40, "train_examples": 5}
    task, streams = group(own, own)
    model, state = start(task, streams)
    train_step(task, model, state, streams)
    corpus = text.corpus("wikitext103", "validation")
    chunks = [corpus.tokens[start : start + 41].tolist() for start in corpus.starts(41)]

    assert state.first_bad.tolist() == [-1, -1]
    assert state.parameters["decoder.weight"].shape == (2, 50_277, 2)
    assert task.eval_data(streams, "train")["tokens"].shape == (2, 5, 41)
    assert task.eval_data(streams, "val")["tokens"].tolist() == [chunks, chunks]


def test_the_text_may_be_read_as_the_papers_code_reads_it(wikitext):
    """Another text for another setting, of the same lines."""
    for clean in (True, False):
        task, streams = group({**SMALL, "context": 40, "clean": clean})
        corpus = text.corpus("wikitext103", "validation", clean=clean)
        chunks = [corpus.tokens[start : start + 41].tolist() for start in corpus.starts(41)]
        assert task.eval_data(streams, "val")["tokens"].tolist() == [chunks]


def test_a_model_is_built_without_its_data(other_folder):
    task, streams = group(SMALL)

    assert task.build(streams[0]).decoder.out_features == 50_277
    assert LanguageModeling.missing(task.config) == text.missing("wikitext103") != []
    with pytest.raises(MissingDataError):
        task.batch(streams, 0, 0)


def test_the_largest_token_ids_arrive_as_they_are(other_folder):
    """Beyond 32,767 they are negative as the 16-bit integers that they are kept as."""
    ids = {"one": 32_767, "two": 32_768, "three": 50_276}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="one"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    texts.write_tokenizer(other_folder, tokenizer)
    texts.write_lines(other_folder, {name: ["One, two: three!"] for name in texts.SPLITS})
    task, streams = group({**SMALL, "context": 2})

    assert task.eval_data(streams, "val")["tokens"].tolist() == [[list(ids.values())]]


def test_a_text_that_is_too_short_is_refused(wikitext):
    task, streams = group({**SMALL, "context": 65_000})
    with pytest.raises(TaskError) as raised:
        task.eval_data(streams, "val")

    count = len(text.corpus("wikitext103", "validation").tokens)
    assert str(raised.value) == (
        f"data set wikitext103, split validation: its {count} tokens give no example of 65001; "
        "lower context"
    )


def test_a_batch_larger_than_the_training_set_is_refused(wikitext):
    task, streams = group({**SMALL, "context": 1000, "batch_size": 999})
    count = len(text.corpus("wikitext103").starts(1001))
    with pytest.raises(TaskError) as raised:
        task.batch(streams, 0, 0)

    assert str(raised.value) == (
        f"batch_size (999) exceeds the {count} training examples of 1001 tokens that wikitext103 "
        "has; lower batch_size or context"
    )


def test_a_split_that_leaves_nothing_is_refused():
    task, streams = group({"context": 60_000, "train_fraction": 0.1})
    count = len(text.corpus("python_docs").tokens) // 60_001
    with pytest.raises(TaskError) as raised:
        task.eval_data(streams, "val")

    assert str(raised.value) == (
        f"train_fraction (0.1) of the {count} examples of 60001 tokens that python_docs has leaves "
        "none for train or none for val; change it, or lower context"
    )


GIVEN = "has no effect with data: wikitext103, whose tokens and split are given; leave it out"


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (
            {"clean": False},
            "clean (False) has no effect with data: python_docs, a text that is always cleaned; "
            "leave it out",
        ),
        ({"width": 10, "heads": 4}, "width (10) is not divisible by heads (4)"),
        ({"micro_batches": 3}, "micro_batches (3) does not divide the 8 examples of a step"),
        ({"data": "wikitext103", "vocabulary": 64}, f"vocabulary (64) {GIVEN}"),
        (
            {"data": "wikitext103", "train_fraction": 0.5, "split_seed": 1},
            f"train_fraction (0.5) {GIVEN}; split_seed (1) {GIVEN}",
        ),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(fields, problem):
    with pytest.raises(ValidationError) as raised:
        LanguageModeling.Config(**{**TINY, **fields})

    assert [error["msg"] for error in raised.value.errors()] == [f"Value error, {problem}"]
