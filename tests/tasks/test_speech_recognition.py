"""Speech recognition: its splits, loss, metrics, model and matrices."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import ctc_loss, pad

import spectral
from spectral.coupling_checks import check_couplings
from tasks import data, evaluate, librispeech, make_streams, start, synthesised_speech, train_step
from tasks.random import Streams
from tasks.speech_recognition import SpeechRecognition
from tasks.task import TaskError
from tests.tasks.initial_ranks import normalised_effective_rank
from tests.tasks.sounds import COUNTS, write_folder

TINY = {"num_utterances": 40, "max_words": 2, "hidden": 4, "layers": 2, "batch_size": 6}


def group(*configs):
    parsed = [SpeechRecognition.Config(**{**TINY, **config}) for config in configs]
    return SpeechRecognition(parsed), make_streams(parsed, range(len(parsed)))


@pytest.fixture(scope="module")
def full_size():
    """(task, model) of the paper."""
    config = SpeechRecognition.Config()
    task = SpeechRecognition([config])
    return task, task.build(Streams([0]))


@pytest.fixture(scope="module")
def pool():
    return synthesised_speech.utterances(40, 2, 0.1)


def test_every_utterance_is_in_train_or_in_val():
    """floor(0.8 · 40) = 32 in train, of which metrics take the first 10."""
    task, streams = group({"train_examples": 10}, {"train_examples": 10})
    val = task.eval_data(streams, "val")["utterance"]
    seen = torch.cat([task.batch(streams, step, 0)["utterance"] for step in range(5)], dim=1)

    assert val.shape == (2, 8)
    for k in range(2):
        assert len(set(seen[k].tolist())) == 30
        assert set(seen[k].tolist()).isdisjoint(val[k].tolist())
    assert not torch.equal(val[0], val[1])
    whole, _ = group({})
    train = whole.eval_data(streams, "train")["utterance"]
    assert train.shape == (2, 32)
    assert torch.equal(task.eval_data(streams, "train")["utterance"], train[:, :10])
    for k in range(2):
        assert sorted([*train[k].tolist(), *val[k].tolist()]) == [*range(40)]


def test_librispeech_is_validated_on_dev_clean(tmp_path, monkeypatch):
    """Three utterances are trained on, in the order of the split stream; the fourth is val."""
    write_folder(tmp_path)
    monkeypatch.setattr(librispeech, "NUM_UTTERANCES", COUNTS)
    data.use(tmp_path)
    try:
        config = SpeechRecognition.Config(data="librispeech", batch_size=2)
        assert SpeechRecognition.missing(config) == []
        task, streams = SpeechRecognition([config]), Streams([0])

        assert sorted(task.eval_data(streams, "train")["utterance"][0].tolist()) == [0, 1, 2]
        assert task.eval_data(streams, "val")["utterance"].tolist() == [[3]]
    finally:
        data.use(None)


def test_the_loss_is_the_mean_that_torch_takes(pool):
    """Each utterance's divided by its characters; frames of the padding do not count."""
    task, streams = group({"precision": "float64"})
    which = task.batch(streams, 0, 0)["utterance"][0]
    frames = int(pool.lengths.max())
    logits = torch.randn(6, frames, 30, dtype=torch.float64)
    seen = []

    def forward(features):
        seen.append(features)
        return logits

    total, weight = task.loss(forward, {"utterance": which})

    theirs = ctc_loss(
        logits.log_softmax(-1).transpose(0, 1),
        torch.cat([pool.targets[n, : pool.target_lengths[n]] for n in which.tolist()]).long(),
        pool.lengths[which],
        pool.target_lengths[which],
    )
    torch.testing.assert_close(total / weight, theirs)
    assert seen[0].shape == (6, frames, 40)
    for row, n in zip(seen[0], which.tolist(), strict=True):
        begin, length = int(pool.starts[n]), int(pool.lengths[n])
        expected = pad(pool.frames[begin : begin + length], (0, 0, 0, frames - length))
        assert torch.equal(row, expected.double())


def spelling(pool, ids_of):
    """Logits that spell `ids_of(targets of n)` for every utterance n, a blank after each letter."""
    logits = torch.zeros(len(pool), 2 * int(pool.lengths.max()), 30)
    for n, length in enumerate(pool.target_lengths.tolist()):
        for place, id_ in enumerate(ids_of(pool.targets[n, :length].tolist())):
            logits[n, 2 * place, id_] = 50.0
            logits[n, 2 * place + 1, 0] = 50.0
    return logits


def heard(task, pool, ids_of):
    """Metrics over all utterances if the model hears them so; blanks must fit its frames."""
    fits = (pool.lengths >= 2 * pool.target_lengths).nonzero().squeeze(1)
    logits = spelling(pool, ids_of)[fits][:, : int(pool.lengths.max())]
    found = task.evaluate(lambda features: logits, {"utterance": fits})
    assert len(fits) > 20
    words = sum(
        pool.targets[n, : pool.target_lengths[n]].tolist().count(2) + 1 for n in fits.tolist()
    )
    return found, len(fits), int(pool.target_lengths[fits].sum()), words


def test_what_is_heard_right_has_no_errors(pool):
    found, _, letters, words = heard(group({})[0], pool, lambda ids: ids)

    assert [float(x) for x in found["cer"]] == [0, letters]
    assert [float(x) for x in found["wer"]] == [0, words]


def test_what_is_not_heard_is_all_errors(pool):
    found, _, letters, words = heard(group({})[0], pool, lambda ids: [])

    assert [float(x) for x in found["cer"]] == [letters, letters]
    assert [float(x) for x in found["wer"]] == [words, words]


def test_one_wrong_letter_is_one_wrong_character_and_word(pool):
    """The first letter becomes <unk>."""
    found, count, letters, words = heard(group({})[0], pool, lambda ids: [1, *ids[1:]])

    assert [float(x) for x in found["cer"]] == [count, letters]
    assert [float(x) for x in found["wer"]] == [count, words]


def test_utterances_that_are_left_out_are_counted(pool, capsys):
    """33.3 frames are a second: 0.9 s are 30 frames."""
    long = int((pool.lengths > 30).sum())
    task, streams = group({"max_seconds": 0.9})

    task.eval_data(streams, "val")

    assert 0 < long < 40
    assert capsys.readouterr().err == (
        f"speech_recognition: {long} of 40 utterances are left out: longer than 0.9 s or with more "
        "characters than frames\n"
    )


def test_too_few_utterances_are_an_error():
    task, streams = group({"max_seconds": 0.1})

    with pytest.raises(TaskError) as caught:
        task.batch(streams, 0, 0)

    assert str(caught.value) == (
        "0 utterances for training and 0 for val are not longer than max_seconds (0.1); batches of "
        "6 need more: raise it"
    )


def test_settings_that_contradict_are_refused_together():
    with pytest.raises(ValueError, match="batch_size") as caught:
        SpeechRecognition.Config(num_utterances=30, micro_batches=5)
    with pytest.raises(ValueError, match="librispeech") as ignored:
        SpeechRecognition.Config(data="librispeech", max_words=2, noise_level=0.5)

    assert (
        "batch_size (32) exceeds the 24 training utterances: train_fraction (0.8) of "
        "num_utterances (30); micro_batches (5) does not divide batch_size (32)"
    ) in str(caught.value)
    assert (
        "max_words (2) has no effect with data: librispeech; leave it out; "
        "noise_level (0.5) has no effect with data: librispeech; leave it out"
    ) in str(ignored.value)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_it_trains_in_sixteen_bits(precision):
    """Ten steps, because float16 skips the first ones until its loss scale fits."""
    task, streams = group({"precision": precision})
    model, state = start(task, streams)
    before = state.flat.clone()

    for _ in range(10):
        train_step(task, model, state, streams)

    assert state.first_bad.tolist() == [-1]
    assert not torch.equal(state.flat, before)
    assert state.flat.dtype == torch.float32


def test_training_lowers_the_loss_and_the_errors_on_new_utterances():
    """100 steps of a small layer: from more errors than letters to far fewer than all."""
    config = SpeechRecognition.Config(
        num_utterances=400, max_words=1, hidden=48, layers=1, steps=120, lr=0.01, train_examples=1
    )
    task, streams = SpeechRecognition([config]), make_streams([config], [0])
    model, state = start(task, streams)
    for _ in range(120):
        train_step(task, model, state, streams)

    metrics = evaluate(task, model, state, streams)

    assert float(metrics["val", "cer"]) < 0.6


def test_the_model_has_the_size_of_the_paper_s(full_size):
    """5.36 million: four layers, two directions, 1024 rows of 40 or 512 and 256 inputs, two biases;
    30 outputs of 512 inputs."""
    _, model = full_size
    by_hand = 2 * (1024 * (40 + 256 + 2) + 3 * 1024 * (512 + 256 + 2)) + 30 * 513

    assert sum(p.numel() for p in model.parameters()) == by_hand == 5_356_574


def test_trials_of_a_process_share_their_utterances():
    """One task after the other, and a device under both of its names."""
    (first, _), (second, _) = group({}), group({"lr": 0.5})
    pool = first._pool(torch.device("cpu"))

    assert second._pool(torch.device("cpu")) is pool
    assert first._pool(torch.device("meta")) is first._pool(torch.device("meta", 0))


def test_there_are_17_matrices_and_22_couplings(full_size):
    """ih -> hh, ih -> ih and hh -> ih in each of three layers and two directions, and four into the
    linear layer; a matrix that reads both directions is met in the half of its columns."""
    task, model = full_size
    views, couplings = task.views(model), task.couplings(model)
    parameters = dict(model.named_parameters())
    by_hand = []
    for layer in range(4):
        for reverse in ("", "_reverse"):
            ih, hh = f"weight_ih_l{layer}{reverse}", f"weight_hh_l{layer}{reverse}"
            after = f"weight_ih_l{layer + 1}{reverse}" if layer < 3 else "linear"
            half = f"{after}[reverse]" if reverse else f"{after}[forward]"
            by_hand += [(f"{ih}->{hh}", ih, hh)] if layer < 3 else []
            by_hand += [(f"{ih}->{after}", ih, half), (f"{hh}->{after}", hh, half)]
    whole = [view for view in views if "[" not in view.name]
    halves = [view for view in views if "[" in view.name]

    assert [view.name for view in whole] == [
        *(
            f"weight_{kind}_l{n}{r}"
            for n in range(4)
            for r in ("", "_reverse")
            for kind in ("ih", "hh")
        ),
        "linear",
    ]
    assert len(whole) == 17
    assert {view.name: view.columns for view in halves} == {
        **{f"weight_ih_l{n}[forward]": (0, 256) for n in (1, 2, 3)},
        **{f"weight_ih_l{n}_reverse[reverse]": (256, 512) for n in (1, 2, 3)},
        "linear[forward]": (0, 256),
        "linear[reverse]": (256, 512),
    }
    assert len(couplings) == 22
    assert sorted((c.name, c.first.view, c.second.view) for c in couplings) == sorted(by_hand)
    assert {(c.first.side, c.first.entries) for c in couplings} == {("left", (512, 768))}
    assert {(c.second.side, c.second.entries, c.length) for c in couplings} == {
        ("right", None, 1024)
    }
    shapes = {view.name: view.shape(parameters) for view in views}
    assert check_couplings(views, couplings, shapes) == []


def alignments(task, model):
    """Coupling -> its alignment, measured on the task's own views."""
    parameters = dict(model.named_parameters())
    views = {view.name: view for view in task.views(model)}
    found = {name: spectral.decompose([view.read(parameters)])[0] for name, view in views.items()}
    return {
        c.name: spectral.inter_layer_alignment(found[c.first.view], found[c.second.view], c)
        for c in task.couplings(model)
    }


def planted(task, reverse):
    """A model whose gate g of `weight_hh_l0` writes what its half of `weight_ih_l1` reads first.

    The other half is larger, and unrelated.
    """
    h, suffix = task.config.hidden, "_reverse" if reverse else ""
    model = task.build(Streams([0]))
    parameters = {name.removeprefix("lstm."): p.detach() for name, p in model.named_parameters()}
    written, first, second = (torch.linalg.qr(torch.randn(h, h))[0] for _ in range(3))
    spread = torch.diag(torch.arange(h, 0, -1.0))
    hh, ih = parameters[f"weight_hh_l0{suffix}"], parameters[f"weight_ih_l1{suffix}"]
    hh.zero_()[2 * h : 3 * h] = written @ spread @ first
    own, other = (slice(h, 2 * h), slice(0, h)) if reverse else (slice(0, h), slice(h, 2 * h))
    ih.zero_()[:h, own] = second @ spread @ written.T
    ih[:, other] = 10 * h * torch.randn(4 * h, h)
    return model


@pytest.mark.parametrize("reverse", [False, True])
def test_what_a_direction_writes_meets_the_half_that_reads_it(reverse):
    """All entries are 1, whatever stands in the other half of the matrix."""
    task, _ = group({})
    suffix = "_reverse" if reverse else ""

    found = alignments(task, planted(task, reverse))[f"weight_hh_l0{suffix}->weight_ih_l1{suffix}"]

    np.testing.assert_allclose(found.diagonal, np.ones(4), atol=1e-4)


def test_a_reader_is_cut_to_its_half_before_it_is_decomposed():
    """Each coupling into a next matrix against numpy's SVD of the columns alone; to 1e-4."""
    task, _ = group({})
    model, h = task.build(Streams([3])), task.config.hidden
    w = {
        name.removeprefix("lstm.").removesuffix(".weight"): p.detach().double().numpy()
        for name, p in model.named_parameters()
    }

    found = alignments(task, model)

    for reverse in ("", "_reverse"):
        columns = slice(h, 2 * h) if reverse else slice(0, h)
        for layer, after in ((0, f"weight_ih_l1{reverse}"), (1, "linear")):
            for kind in ("ih", "hh"):
                writer = f"weight_{kind}_l{layer}{reverse}"
                u = np.linalg.svd(w[writer], full_matrices=False)[0][2 * h : 3 * h]
                vt = np.linalg.svd(w[after][:, columns], full_matrices=False)[2]
                slow = np.abs([u[:, j] @ vt[j] for j in range(min(u.shape[1], len(vt)))])
                np.testing.assert_allclose(
                    found[f"{writer}->{after}"].diagonal, slow, atol=1e-4, err_msg=writer + after
                )


def test_the_length_of_a_coupling_is_that_of_independent_random_vectors():
    """Unit vectors of 16 entries, of which 4 meet a unit vector of 4: squares are 1 / (4 hidden).

    At the paper's width chance is 0.025.
    """
    first, second = (nn.functional.normalize(torch.randn(40_000, n), dim=1) for n in (16, 4))
    task, _ = group({})
    (length,) = {coupling.length for coupling in task.couplings(nn.Module())}

    assert float((first[:, 8:12] * second).sum(1).square().mean()) == pytest.approx(
        1 / length, rel=0.05
    )
    assert np.sqrt(2 / np.pi / (4 * 256)) == pytest.approx(0.025, abs=5e-4)


def test_all_17_matrices_start_with_the_papers_ranks(full_size):
    """Of uniform random matrices of their shapes, within 0.005; both directions are drawn alike."""
    _, model = full_size
    expected = {"linear.weight": 0.993}
    for layer in range(4):
        for reverse in ("", "_reverse"):
            expected[f"lstm.weight_ih_l{layer}{reverse}"] = 0.926 if layer else 0.995
            expected[f"lstm.weight_hh_l{layer}{reverse}"] = 0.966
    found = {
        name: normalised_effective_rank(p) for name, p in model.named_parameters() if p.ndim > 1
    }

    assert found == pytest.approx(expected, abs=0.005)
