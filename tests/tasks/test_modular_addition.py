"""Modular addition: its data, metrics and views."""

import pytest
import torch
from pydantic import ValidationError

from spectral import CouplingEnd, take_snapshot
from spectral.coupling_checks import check_couplings
from tasks import evaluate, make_streams, start, train_step
from tasks.modular_addition import ModularAddition
from tasks.transformer_matrices import attention_couplings, attention_views
from tests.tasks.initial_ranks import normalised_effective_rank

TINY = {"modulus": 7, "width": 8, "heads": 2, "feed_forward": 12, "train_fraction": 0.5}


def group(*configs, seeds=None):
    parsed = [ModularAddition.Config(**{**TINY, **config}) for config in configs]
    task = ModularAddition(parsed)
    return task, make_streams(parsed, range(len(parsed)) if seeds is None else seeds)


def test_train_and_val_are_all_pairs_with_their_sum():
    """floor(0.5 · 49) = 24 pairs in train; every pair is in exactly one of the two."""
    task, streams = group({}, {})
    train, val = (task.eval_data(streams, split) for split in ("train", "val"))

    assert train["tokens"].shape == (2, 24, 3)
    assert val["tokens"].shape == (2, 25, 3)
    for k in range(2):
        tokens = torch.cat([train["tokens"][k], val["tokens"][k]])
        labels = torch.cat([train["labels"][k], val["labels"][k]])
        assert sorted(map(tuple, tokens.tolist())) == [
            (i, j, 7) for i in range(7) for j in range(7)
        ]
        assert torch.equal(labels, tokens[:, :2].sum(1) % 7)
    assert not torch.equal(train["tokens"][0], train["tokens"][1])


def test_a_fixed_split_seed_gives_every_trial_the_same_split():
    task, streams = group({"split_seed": 4}, {"split_seed": 4})
    tokens = task.eval_data(streams, "train")["tokens"]

    assert torch.equal(tokens[0], tokens[1])


def test_the_full_batch_is_the_training_set_and_micro_batches_part_it():
    task, streams = group({"micro_batches": 3})
    train = task.eval_data(streams, "train")

    parts = [task.batch(streams, 5, micro) for micro in range(3)]

    for name, whole in train.items():
        assert torch.equal(torch.cat([part[name] for part in parts], dim=1), whole)


def test_mini_batches_go_through_the_training_set_in_epochs():
    """24 pairs in batches of 10: two steps an epoch, each in two micro-batches."""
    task, streams = group({"batch_size": 10, "micro_batches": 2})
    train = set(map(tuple, task.eval_data(streams, "train")["tokens"][0].tolist()))
    epochs = []
    for epoch in range(2):
        batches = [task.batch(streams, 2 * epoch + s, m) for s in range(2) for m in range(2)]
        tokens = torch.cat([batch["tokens"][0] for batch in batches])
        labels = torch.cat([batch["labels"][0] for batch in batches])
        assert [len(batch["labels"][0]) for batch in batches] == [5, 5, 5, 5]
        assert torch.equal(labels, tokens[:, :2].sum(1) % 7)
        epochs.append(list(map(tuple, tokens.tolist())))

    for tokens in epochs:
        assert len(set(tokens)) == 20
        assert set(tokens) <= train
    assert epochs[0] != epochs[1]


def test_loss_and_error_are_means_over_the_pairs():
    """Against the model run by itself on trial 1 of a group of two."""
    task, streams = group({}, {"precision": "float32"})
    model, state = start(task, streams)
    metrics = evaluate(task, model, state, streams)
    solo = task.build(streams[1])

    for split in ("train", "val"):
        data = {n: t[1] for n, t in task.eval_data(streams, split).items()}
        logits = solo(data["tokens"])[:, -1].detach().double()
        loss = torch.nn.functional.cross_entropy(logits, data["labels"])
        error = (logits.argmax(-1) != data["labels"]).double().mean()
        assert float(metrics[split, "loss"][1]) == pytest.approx(float(loss), rel=1e-6)
        assert float(metrics[split, "error"][1]) == float(error)


def test_training_lowers_the_training_loss():
    """Chance is ln 7 = 1.95 nats; 60 steps memorise half of the 24 pairs and more."""
    task, streams = group({"lr": 0.01})
    model, state = start(task, streams)
    for _ in range(60):
        train_step(task, model, state, streams)

    assert float(evaluate(task, model, state, streams)["train", "loss"]) < 1.0


@pytest.mark.parametrize("count", [2, 3])
def test_a_trial_of_realistic_size_has_the_same_bits_alone_and_in_company(count):
    """Large enough for the library's blocked matrix products and vectorised reductions."""
    size = {"modulus": 31, "width": 64, "heads": 4, "feed_forward": 128, "train_fraction": 0.7}
    own = [{**size, "positions": "learned", "weight_decay": 1.0 * k} for k in range(count)]

    def train(configs, seeds):
        task, streams = group(*configs, seeds=seeds)
        model, state = start(task, streams)
        for _ in range(3):
            train_step(task, model, state, streams)
        return state.flat, evaluate(task, model, state, streams)

    together, metrics = train(own, range(count))
    for k in range(count):
        alone, values = train([own[k]], [k])
        assert torch.equal(together[k], alone[0])
        assert all(torch.equal(metrics[key][k], value[0]) for key, value in values.items())


def test_the_views_are_the_matrices_of_the_paper_and_the_parts_of_the_attention():
    task, streams = group({})
    model, state = start(task, streams)
    parameters = {name: t[0] for name, t in state.parameters.items()}
    shapes = {view.name: view.shape(parameters) for view in task.views(model)}

    attention = "layers.0.attention"
    heads = {f"{attention}.{p}[{h}]": (4, 8) for p in ("query", "key", "value") for h in (0, 1)}
    whole = {f"{attention}.{part}": (8, 8) for part in ("query", "key", "value", "out_proj")}
    assert shapes == {
        "embedding": (8, 8),
        f"{attention}.in_proj": (24, 8),
        **whole,
        **heads,
        **{f"{attention}.out_proj[{h}]": (8, 4) for h in (0, 1)},
        "layers.0.linear1": (12, 8),
        "layers.0.linear2": (8, 12),
        "decoder": (8, 8),
    }


def test_a_head_is_its_rows_of_the_fused_matrix():
    """Query, key and value in this order, the heads one after the other in each."""
    task, streams = group({})
    model, state = start(task, streams)
    parameters = {name: t[0] for name, t in state.parameters.items()}
    views = {view.name: view.read(parameters) for view in task.views(model)}
    fused = views["layers.0.attention.in_proj"]

    parts = [
        views[f"layers.0.attention.{part}[{h}]"]
        for part in ("query", "key", "value")
        for h in (0, 1)
    ]
    assert torch.equal(torch.cat(parts), fused)
    assert torch.equal(views["layers.0.attention.key"], fused[8:16])


def test_the_output_of_a_head_is_read_by_its_columns_of_out_proj():
    """The attention of a head alone, through its columns, adds up to that of all: one position,
    which attends to itself only, so a head's output is its value."""
    task, streams = group({})
    model = task.build(streams[0])
    views = {view.name: view.read(dict(model.named_parameters())) for view in task.views(model)}
    attention, x = model.layers[0].attention, torch.randn(8, generator=torch.manual_seed(0))

    parts = [
        views[f"layers.0.attention.out_proj[{h}]"] @ views[f"layers.0.attention.value[{h}]"] @ x
        for h in (0, 1)
    ]

    whole = attention(x[None, None], False)[0, 0]
    torch.testing.assert_close(sum(parts), whole)


def couplings_of(**config):
    task, streams = group(config)
    model = task.build(streams[0])
    return task.couplings(model), task.views(model), dict(model.named_parameters())


def test_one_layer_has_the_six_couplings_of_the_paper():
    """The heads of query and key count as one: they are averaged."""
    couplings, _, _ = couplings_of()
    attention = "layers.0.attention"

    measured = [c for c in couplings if not (c.residual or c.per_head)]

    assert list(dict.fromkeys(c.group or c.name for c in measured)) == [
        f"embedding->{attention}.in_proj",
        f"{attention}.query->key",
        f"{attention}.value->{attention}.out_proj",
        f"{attention}.out_proj->layers.0.linear1",
        "layers.0.linear1->layers.0.linear2",
        "layers.0.linear2->decoder",
    ]


def test_couplings_past_a_reader_of_the_residual_stream_are_marked():
    couplings, _, _ = couplings_of()

    assert [c.name for c in couplings if c.residual] == [
        "embedding->layers.0.linear1",
        "layers.0.attention.out_proj->decoder",
    ]


@pytest.mark.parametrize("layers", [1, 2, 12])
def test_twelve_layers_have_the_61_couplings_of_the_paper(layers):
    """One to enter, and in each layer Q-K, V-O, O-W1, W1-W2, W2-next: 5 layers + 1."""
    couplings, _, _ = couplings_of(layers=layers)

    measured = {c.group or c.name for c in couplings if not (c.residual or c.per_head)}
    heads = {c.group for c in couplings if c.per_head}

    assert len(measured) == 5 * layers + 1
    assert len([c for c in couplings if c.residual]) == 2 * layers
    assert heads == {f"layers.{i}.attention.value->out_proj.heads" for i in range(layers)}
    if layers > 1:
        assert "layers.0.linear2->layers.1.attention.in_proj" in measured
        assert "layers.0.linear2->decoder" not in measured


def test_each_coupling_meets_the_side_that_faces_the_other():
    """An embedding's right vectors are its output; queries meet keys left against left."""
    couplings, _, _ = couplings_of()
    ends = {c.name: (c.first, c.second, c.length) for c in couplings}

    assert ends["embedding->layers.0.attention.in_proj"] == (
        CouplingEnd("embedding", "right"),
        CouplingEnd("layers.0.attention.in_proj", "right"),
        8,
    )
    for h in (0, 1):
        assert ends[f"layers.0.attention.query->key[{h}]"] == (
            CouplingEnd(f"layers.0.attention.query[{h}]", "left"),
            CouplingEnd(f"layers.0.attention.key[{h}]", "left"),
            4,
        )
    assert ends["layers.0.attention.value->layers.0.attention.out_proj"] == (
        CouplingEnd("layers.0.attention.value", "left"),
        CouplingEnd("layers.0.attention.out_proj", "right"),
        8,
    )
    for h in (0, 1):
        assert ends[f"layers.0.attention.value->out_proj[{h}]"] == (
            CouplingEnd(f"layers.0.attention.value[{h}]", "left"),
            CouplingEnd(f"layers.0.attention.out_proj[{h}]", "right"),
            4,
        )
    assert ends["layers.0.linear1->layers.0.linear2"] == (
        CouplingEnd("layers.0.linear1", "left"),
        CouplingEnd("layers.0.linear2", "right"),
        12,
    )
    assert ends["layers.0.linear2->decoder"] == (
        CouplingEnd("layers.0.linear2", "left"),
        CouplingEnd("decoder", "right"),
        8,
    )


def test_a_head_whose_output_undoes_its_values_is_aligned_with_them():
    """W_O^h = Q_h (W_V^h)^T with a rotation Q_h of its own: right vectors of the one are left ones
    of the other, and every entry of the diagonal is 1. All heads as one have no such pairs, and
    neither has a head with the columns of another."""
    generator = torch.manual_seed(3)
    value = torch.randn(8, 8, generator=generator, dtype=torch.float64)
    rotations, _ = torch.linalg.qr(torch.randn(2, 8, 8, generator=generator, dtype=torch.float64))
    undo = [rotations[h] @ value[4 * h : 4 * h + 4].T for h in (0, 1)]

    def measured(heads):
        fused = torch.cat([torch.eye(16, 8, dtype=torch.float64), value])
        output = torch.cat([undo[h] for h in heads], dim=1)
        parameters = {"a.in_proj_weight": fused[None], "a.out_proj.weight": output[None]}
        views, couplings = attention_views("a", 8, 2), attention_couplings("a", 8, 2)
        couplings = [c for c in couplings if "value" in c.name]
        (snapshot,), _ = take_snapshot(views, parameters, ["alignment"], None, couplings=couplings)
        found = {s.subject: s.values for s in snapshot.spectra}
        return {name: found[name].tolist() for name in found if "value" in name}

    paired, crossed = measured([0, 1]), measured([1, 0])
    for name in ("a.value->out_proj[0]", "a.value->out_proj[1]", "a.value->out_proj.heads"):
        # rtol=1e-12: float64 vectors of random 4 x 8 matrices, whose gaps are far from rounding
        assert paired[name] == pytest.approx([1.0] * 4, rel=1e-12)
        assert sum(crossed[name]) < 3.5
    assert sum(paired["a.value->a.out_proj"]) < 7


@pytest.mark.parametrize("config", [{}, {"layers": 3, "positions": "learned", "layer_norm": True}])
def test_every_coupling_fits_its_matrices(config):
    couplings, views, parameters = couplings_of(**config)
    shapes = {view.name: view.shape(parameters) for view in views}

    assert check_couplings(views, couplings, shapes) == []
    shapes["decoder"] = (8, 9)
    assert [problem.split(":")[0] for problem in check_couplings(views, couplings, shapes)] == [
        f"coupling '{c.name}'" for c in couplings if c.second.view == "decoder"
    ]


MLP = {"model": "mlp", "modulus": 5, "mlp_width": 6, "mlp_layers": 3, "train_fraction": 0.5}


def mlp_group(*own, seeds=None):
    configs = [ModularAddition.Config(**{**MLP, **config}) for config in own]
    task = ModularAddition(configs)
    return task, make_streams(configs, range(len(own)) if seeds is None else seeds)


def test_the_mlp_reads_two_one_hot_vectors_and_is_compared_with_a_third():
    """By hand: the second number j is column p + j; the mean is over all outputs."""
    task, streams = mlp_group({}, {})
    model, state = start(task, streams)
    metrics = evaluate(task, model, state, streams)
    solo = task.build(streams[1])
    data = {name: t[1] for name, t in task.eval_data(streams, "val").items()}
    inputs, targets = torch.zeros(13, 10), torch.zeros(13, 5)
    for row, (i, j, _) in enumerate(data["tokens"].tolist()):
        inputs[row, i] = inputs[row, 5 + j] = targets[row, (i + j) % 5] = 1.0
    outputs = solo(inputs).detach()

    expected = torch.nn.functional.mse_loss(outputs, targets)
    wrong = (outputs.argmax(1) != targets.argmax(1)).double().mean()
    assert float(metrics["val", "loss"][1]) == pytest.approx(float(expected), rel=1e-6)
    assert float(metrics["val", "error"][1]) == float(wrong)


def test_an_mlp_trains_and_has_the_same_bits_alone_and_in_company():
    """Always answering 1/5 has a squared error of 0.16."""
    own = [{"lr": 0.03, "weight_decay": 0.01 * k} for k in range(2)]

    def train(configs, seeds):
        task, streams = mlp_group(*configs, seeds=seeds)
        model, state = start(task, streams)
        for _ in range(40):
            train_step(task, model, state, streams)
        return state.flat, evaluate(task, model, state, streams)["train", "loss"]

    together, losses = train(own, range(2))
    assert losses.max() < 0.12
    for k in range(2):
        alone, _ = train([own[k]], [k])
        assert torch.equal(together[k], alone[0])


def test_the_mlp_of_the_reference_code_has_five_layers_that_meet_in_a_chain():
    """Width 100, inputs 2 p, outputs p."""
    task = ModularAddition([ModularAddition.Config(model="mlp", modulus=23)])
    model = task.build(make_streams(task.configs, [0]))
    parameters = dict(model.named_parameters())
    shapes = {view.name: view.shape(parameters) for view in task.views(model)}

    assert shapes == {
        "layers.0": (100, 46),
        **{f"layers.{i}": (100, 100) for i in (1, 2, 3)},
        "layers.4": (23, 100),
    }
    couplings = task.couplings(model)
    assert [c.name for c in couplings] == [f"layers.{i}->layers.{i + 1}" for i in range(4)]
    assert check_couplings(task.views(model), couplings, shapes) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"mlp_width": 7, "mlp_layers": 3},
            "mlp_width (7) has no effect with model: transformer; leave it out; "
            "mlp_layers (3) has no effect with model: transformer; leave it out",
        ),
        (
            {"model": "mlp", "layer_norm": True},
            "layer_norm (True) has no effect with model: mlp; leave it out",
        ),
    ],
    ids=str,
)
def test_parameters_of_the_other_model_are_refused(values, message):
    with pytest.raises(ValidationError) as caught:
        ModularAddition.Config(**values)
    assert [e["msg"] for e in caught.value.errors()] == [f"Value error, {message}"]


PAPER = {
    "grokking": {},
    "slingshot": {"modulus": 97, "train_fraction": 0.7, "layer_norm": True, "warmup": 10},
}


@pytest.fixture(scope="module", params=PAPER)
def paper(request):
    """(p, views, couplings, parameters) of one of the paper's settings at full size."""
    config = ModularAddition.Config(**PAPER[request.param])
    task = ModularAddition([config])
    model = task.build(make_streams([config], [0]))
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    return config.modulus, task.views(model), task.couplings(model), parameters


def test_the_paper_counts_six_matrices_and_six_couplings(paper):
    """Whole parameters of two dimensions; the heads of query and key count as one."""
    _, views, couplings, parameters = paper
    matrices = [name for name, p in parameters.items() if p.ndim == 2]
    whole = [v for v in views if v.shape(parameters) == tuple(parameters[v.parameter].shape)]

    assert sorted(v.parameter for v in whole) == sorted(matrices)
    assert len(matrices) == 6
    measured = {c.group or c.name for c in couplings if not (c.residual or c.per_head)}
    assert len(measured) == 6
    assert {c.group for c in couplings if c.per_head} - measured == {
        "layers.0.attention.value->out_proj.heads"
    }


def test_matrices_start_at_the_rank_of_uniform_random_ones(paper):
    """exp(H)/R of iid uniform matrices: the mean over many draws, ±0.005 or four deviations."""
    modulus, views, _, parameters = paper
    of_tokens = (0.841, 0.0096) if modulus == 113 else (0.872, 0.0088)
    expected = {
        "embedding": of_tokens,
        "decoder": of_tokens,
        "layers.0.attention.in_proj": (0.954, 0.005),
        "layers.0.attention.out_proj": (0.804, 0.0096),
        "layers.0.linear1": (0.966, 0.005),
        "layers.0.linear2": (0.966, 0.005),
    }
    found = {}
    for view in views:
        if view.name in expected:
            found[view.name] = normalised_effective_rank(view.read(parameters))

    assert found.keys() == expected.keys()
    for name, (value, tolerance) in expected.items():
        assert found[name] == pytest.approx(value, abs=tolerance), name
