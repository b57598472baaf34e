"""Image classification: the architectures and labels of the paper, and trials on them."""

import dataclasses
import functools
from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional

from spectral.geometry import conv_geometries
from tasks import evaluate, image_classification, initialise_, make_streams, start, train_step
from tasks.batch_norm import evaluate_pruned, reestimate
from tasks.image_classification import ImageClassification
from tasks.images import SOURCES, image_set, normalised, pool
from tasks.models.mlp import MLP
from tasks.models.resnet import ResNet18
from tasks.models.vgg import VGG16
from tasks.random import Streams
from tests.tasks.initial_ranks import normalised_effective_rank

Config = ImageClassification.Config
COUNT = SOURCES["digits"].count


@pytest.fixture
def few(monkeypatch):
    """As if the digits were only 48."""
    monkeypatch.setitem(SOURCES, "digits", dataclasses.replace(SOURCES["digits"], count=48))


def group(*own, seeds=None, **shared):
    configs = [Config(**{**shared, **each}) for each in own or ({},)]
    task = ImageClassification(configs)
    return task, make_streams(configs, seeds or range(len(configs)))


@functools.cache
def structure(**fields):
    """(task, model without numbers in it) of a full-size configuration."""
    task, streams = group(**fields)
    with torch.device("meta"):
        return task, task.build(streams.to("meta"))


def shapes(task, model):
    parameters = dict(model.named_parameters())
    return [view.shape(parameters) for view in task.views(model)]


# ----------------------------------------------------------------------------- architectures


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("vgg16", 14_728_266),
        ("resnet18", 11_173_962),
        ("mlp", 3072 * 256 + 256 + 2 * (256 * 256 + 256) + 256 * 10 + 10),
    ],
)
def test_parameter_counts_at_full_size(model, expected):
    _, built = structure(model=model, data="cifar10")

    assert sum(p.numel() for p in built.parameters()) == expected


def test_the_matrices_of_vgg16_are_the_papers():
    task, model = structure(data="cifar10")
    convolutions = [(64, 27), (64, 576), (128, 576), (128, 1152), (256, 1152)]
    convolutions += [(256, 2304)] * 2 + [(512, 2304)] + [(512, 4608)] * 5

    assert shapes(task, model) == [*convolutions, (10, 512)]


def test_index_11_is_the_ninth_convolution():
    """The panels of the paper are named by the index in this layout."""
    task, model = structure(data="cifar10")

    assert [view.name for view in task.views(model)][8] == "layers.11.conv"


def test_the_matrices_of_the_mlp_are_the_papers():
    task, model = structure(model="mlp", data="cifar10")

    assert shapes(task, model) == [(256, 3072), (256, 256), (256, 256), (10, 256)]


def test_classes_and_channels_are_those_of_the_data():
    assert shapes(*structure(data="cifar100"))[-1] == (100, 512)
    assert shapes(*structure(data="mnist"))[0] == (64, 9)


def test_all_14_matrices_of_vgg16_start_with_the_papers_ranks():
    """Of uniform random matrices of their shapes; to 0.005, or four standard deviations."""
    expected = [0.939, 0.986, 0.970, 0.986, 0.970, 0.986, 0.986, 0.970, *[0.986] * 5, 0.998]
    model = initialise_(VGG16(3, 64, 10), Streams([0]))
    weights = [p for p in model.parameters() if p.ndim > 1]
    found = [normalised_effective_rank(weight) for weight in weights]

    assert found[0] == pytest.approx(expected[0], abs=4 * 0.0044)
    assert found[1:] == pytest.approx(expected[1:], abs=0.005)


def test_all_4_matrices_of_the_mlp_start_with_the_papers_ranks():
    """Likewise; square matrices vary by 0.0015, the last one by 0.001."""
    model = initialise_(MLP([3072, 256, 256, 256, 10]), Streams([0]))
    expected = [(0.989, 0.005), (0.805, 4 * 0.0015), (0.805, 4 * 0.0015), (0.995, 4 * 0.001)]
    for layer, (value, tolerance) in zip(model.layers, expected, strict=True):
        assert normalised_effective_rank(layer.weight) == pytest.approx(value, abs=tolerance)


def plain_vgg(inputs, c, classes):
    """VGG-16 as a plain list of layers, with the average pooling of the reference."""
    layers = []
    for width in (c, c, 0, 2 * c, 2 * c, 0, *[4 * c] * 3, 0, *[8 * c] * 3, 0, *[8 * c] * 3):
        if width:
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            inputs = width
        else:
            layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(inputs, classes))


@pytest.mark.parametrize("training", [True, False])
def test_vgg16_is_the_plain_sequence_of_its_layers(training):
    model, plain = VGG16(3, 2, 5).double(), plain_vgg(3, 2, 5).double()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert ours.shape == theirs.shape
        theirs.data.copy_(ours)
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    model.train(training)
    plain.train(training)

    torch.testing.assert_close(model(x), plain(x))


def plain_resnet(x, p):
    """ResNet-18 for small images, in train mode, written out."""

    def normed(x, name):
        mean, variance = x.mean((0, 2, 3), True), x.var((0, 2, 3), correction=0, keepdim=True)
        unit = (x - mean) / (variance + 1e-5).sqrt()
        return unit * p[f"{name}.weight"][:, None, None] + p[f"{name}.bias"][:, None, None]

    x = functional.relu(normed(functional.conv2d(x, p["conv1.weight"], padding=1), "bn1"))
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            own, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = functional.conv2d(x, p[f"{own}.conv1.weight"], stride=stride, padding=1)
            y = functional.relu(normed(y, f"{own}.bn1"))
            y = normed(functional.conv2d(y, p[f"{own}.conv2.weight"], padding=1), f"{own}.bn2")
            if stride == 2:
                x = functional.conv2d(x, p[f"{own}.downsample.0.weight"], stride=2)
                x = normed(x, f"{own}.downsample.1")
            x = functional.relu(x + y)
    return x.mean((2, 3)) @ p["fc.weight"].T + p["fc.bias"]


def test_resnet18_is_its_blocks_written_out():
    model = ResNet18(3, 2, 5).double()
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)

    torch.testing.assert_close(model(x), plain_resnet(x, dict(model.named_parameters())))


# ----------------------------------------------------------------------------- couplings


def test_vgg16_has_the_13_couplings_of_the_paper_at_the_centres_of_the_kernels():
    task, model = structure(data="cifar10")
    names = [view.name for view in task.views(model)]
    couplings = task.couplings(model)

    assert [(c.first.view, c.second.view) for c in couplings] == list(pairwise(names))
    assert {(c.first.side, c.second.side) for c in couplings} == {("left", "right")}
    assert couplings[8].second.reshape == (512, 3, 3)
    assert {c.second.tap for c in couplings[:12]} == {(1, 1)}
    assert couplings[8].length == 4608
    assert (couplings[12].second.reshape, couplings[12].length) == (None, 512)


def test_the_mlp_has_the_3_couplings_of_the_paper():
    task, model = structure(model="mlp", data="cifar10")

    assert [c.name for c in task.couplings(model)] == [
        "layers.0->layers.1",
        "layers.1->layers.2",
        "layers.2->layers.3",
    ]
    assert {c.length for c in task.couplings(model)} == {256}


def test_in_resnet18_only_what_a_residual_stream_lies_between_is_residual():
    task, model = structure(model="resnet18", data="cifar10")
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
    couplings = task.couplings(model)
    direct = {c.name for c in couplings if not c.residual}
    across = {c.name for c in couplings if c.residual}
    written = {f"{a}.conv2->{b}.conv1" for a, b in pairwise(blocks)}
    downwards = {f"layer{s}.1.conv2->layer{s + 1}.0.downsample.0" for s in (1, 2, 3)}
    onwards = {f"layer{s}.0.downsample.0->layer{s}.1.conv1" for s in (2, 3, 4)}

    assert direct == {"conv1->layer1.0.conv1"} | {f"{b}.conv1->{b}.conv2" for b in blocks}
    assert across == written | downwards | onwards | {"layer4.1.conv2->fc"}
    assert len(couplings) == len(direct) + len(across) == 23
    downsampling = next(c for c in couplings if c.second.view == "layer2.0.downsample.0")
    assert (downsampling.second.reshape, downsampling.second.tap) == ((64, 1, 1), (0, 0))
    assert downsampling.length == 64


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("vgg16", [32, 32, 16, 16, 8, 8, 8, 4, 4, 4, 2, 2, 2]),
        ("resnet18", [16] * 5 + [16, 8, 16, 8, 8] + [8, 4, 8, 4, 4] + [4, 2, 4, 2, 2]),
    ],
)
def test_the_grids_of_the_convolutions_are_found_without_any_numbers(model, expected):
    """As the orchestrator looks for them before a sweep starts. None is a single pixel.

    In the order of the views: of a block the two convolutions, then the downsampling.
    """
    task, built = structure(model=model)
    with torch.device("meta"), torch.no_grad():
        streams = make_streams(task.configs, [0]).to("meta")
        data = {name: t[0, :2] for name, t in task.eval_data(streams, "train").items()}
        found = conv_geometries(built.eval(), lambda: task.evaluate(built, data))

    in_order = [found[v.parameter].spatial for v in task.views(built) if v.layout == "conv"]
    assert in_order == [(size, size) for size in expected]


# ----------------------------------------------------------------------------- data and labels


def by_image(data, k=0):
    """Image -> label, over train and val."""
    index = torch.cat([data[split]["index"][k] for split in ("train", "val")])
    labels = torch.cat([data[split]["labels"][k] for split in ("train", "val")])
    return labels[index.argsort()]


def data_of(*own, seeds=None, **shared):
    task, streams = group(*own, seeds=seeds, model="mlp", **shared)
    return {split: task.eval_data(streams, split) for split in task.splits}


def test_train_and_val_are_disjoint_and_complete():
    data = data_of(val_fraction=0.25)
    train, val = (data[split]["index"][0].tolist() for split in ("train", "val"))

    assert sorted(train + val) == list(range(COUNT))
    assert len(val) == 449  # 0.25 of 1797, rounded down
    assert data_of(seeds=[1])["val"]["index"][0].tolist() != val


def test_the_papers_split_has_45000_and_5000_images():
    config = Config(data="cifar10")

    assert (config.num_train, config.num_val) == (45_000, 5_000)


def test_true_labels_are_those_of_the_images():
    assert torch.equal(by_image(data_of()), image_set("digits").labels)


def test_permuted_labels_keep_the_balance_of_the_classes_and_nothing_else():
    given, found = image_set("digits").labels, by_image(data_of(labels="permuted"))

    assert torch.equal(found.bincount(), given.bincount())
    # by chance a tenth agrees: 180, with a standard deviation of 13
    assert (found == given).sum() < 180 + 5 * 13


def test_labels_are_permuted_before_the_split_so_that_val_is_meaningless_too():
    val = data_of(labels="permuted")["val"]
    given = image_set("digits").labels[val["index"][0]]

    # 179 images: 18 agree by chance, with a standard deviation of 4
    assert (val["labels"][0] == given).sum() < 18 + 5 * 4


def test_one_permutation_holds_for_the_whole_trial_and_belongs_to_the_labels_stream():
    """It does not change with the split or the order, and a fixed seed gives it to every trial."""
    first, second = {}, {"split_seed": 9}
    data = data_of(first, second, labels="permuted", labels_seed=5, seeds=[0, 1])

    assert torch.equal(by_image(data, 0), by_image(data, 1))
    assert not torch.equal(data["train"]["index"][0], data["train"]["index"][1])
    other = data_of(labels="permuted", labels_seed=6)
    assert not torch.equal(by_image(data, 0), by_image(other))


def test_random_labels_are_uniform_and_independent_of_the_image():
    given, found = image_set("digits").labels, by_image(data_of(labels="random"))
    counts = found.bincount(minlength=10).double()

    assert not torch.equal(found.bincount(), given.bincount())
    # chi squared with 9 degrees of freedom: mean 9, standard deviation 4.2
    assert ((counts - COUNT / 10) ** 2 / (COUNT / 10)).sum() < 9 + 5 * 4.2
    assert (found == given).sum() < 180 + 5 * 13


def test_label_noise_redraws_its_share_of_the_labels():
    given = image_set("digits").labels
    for noise, redrawn in ((0.1, 179), (0.5, 898), (1.0, 1797)):
        changed = (by_image(data_of(label_noise=noise)) != given).sum().item()
        # nine tenths of those redrawn get another label
        assert changed <= redrawn
        assert abs(changed - 0.9 * redrawn) < 5 * (0.09 * redrawn) ** 0.5


def test_more_noise_redraws_the_same_images_and_further_ones():
    """Trials of one seed and rising noise differ by what was added; each is as it is alone."""
    given = image_set("digits").labels
    data = data_of({"label_noise": 0.0}, {"label_noise": 0.2}, {"label_noise": 0.6}, seeds=[3] * 3)
    none, some, more = (by_image(data, k) for k in range(3))

    assert torch.equal(none, given)
    changed = some != given
    assert torch.equal(some[changed], more[changed])
    assert torch.equal(some, by_image(data_of(label_noise=0.2, seeds=[3])))


def test_an_epoch_takes_every_training_image_at_most_once():
    task, streams = group(model="mlp", batch_size=100, micro_batches=2)
    train = task.eval_data(streams, "train")
    label_of = dict(zip(train["index"][0].tolist(), train["labels"][0].tolist(), strict=True))
    taken = []
    for step in range(16):
        for micro in range(2):
            batch = task.batch(streams, step, micro)
            assert [label_of[i] for i in batch["index"][0].tolist()] == batch["labels"][0].tolist()
            taken += batch["index"][0].tolist()

    assert len(taken) == len(set(taken)) == 1600
    assert set(taken) <= set(label_of)


def test_without_a_batch_size_every_step_takes_all_training_images(few):
    task, streams = group(model="mlp", batch_size=None, micro_batches=2)
    parts = [task.batch(streams, 7, micro)["index"][0] for micro in range(2)]

    assert torch.equal(torch.cat(parts), task.eval_data(streams, "train")["index"][0])


# ----------------------------------------------------------------------------- training


def test_metrics_are_the_mean_cross_entropy_and_the_share_of_wrong_answers():
    task, streams = group(model="mlp", hidden=8)
    model, state = start(task, streams)
    metrics = evaluate(task, model, state, streams)
    val = task.eval_data(streams, "val")
    logits = model(normalised(pool("digits", 8, "cpu"), "digits", torch.float32).flatten(1))
    logits = logits[val["index"][0]]

    torch.testing.assert_close(
        metrics["val", "loss"][0],
        functional.cross_entropy(logits, val["labels"][0]).detach().double(),
    )
    wrong = (logits.argmax(1) != val["labels"][0]).double().mean()
    assert metrics["val", "error"][0] == wrong


def test_a_small_vgg_learns_digits():
    """Chance is an error of 0.9 and a loss of ln 10 = 2.30."""
    task, streams = group(channels=4, batch_size=32, lr=3e-3)
    task.splits = ("val",)
    model, state = start(task, streams)
    before = evaluate(task, model, state, streams)
    for _ in range(40):
        train_step(task, model, state, streams)
    after = evaluate(task, model, state, streams)

    assert before["val", "loss"] == pytest.approx(2.3, abs=0.1)
    assert after["val", "loss"] < 1.5
    assert after["val", "error"] < 0.4


def trained(*own, steps=2, seeds=None, **shared):
    task, streams = group(*own, seeds=seeds, **shared)
    model, state = start(task, streams)
    for _ in range(steps):
        train_step(task, model, state, streams)
    return task, streams, model, state


@pytest.mark.parametrize(
    "model", [{"model": "vgg16"}, {"model": "resnet18", "image_size": 16}], ids=lambda m: m["model"]
)
def test_trials_with_batch_normalisation_have_the_same_bits_alone_and_in_company(few, model):
    """Parameters, running statistics and metrics: in a group they are trained one by one."""
    own = [{"lr": 0.05}, {"lr": 0.2}]
    shared = {"channels": 2, "batch_size": 8, "micro_batches": 2, "optimizer": "sgd", **model}
    task, streams, skeleton, together = trained(*own, **shared)
    metrics = evaluate(task, skeleton, together, streams)

    assert not task.stackable
    for k, config in enumerate(own):
        task, streams, skeleton, alone = trained(config, seeds=[k], **shared)
        assert torch.equal(together.flat[k], alone.flat[0])
        for name, buffer in alone.buffers.items():
            assert torch.equal(together.buffers[name][k], buffer[0])
        for key, value in evaluate(task, skeleton, alone, streams).items():
            assert torch.equal(metrics[key][k], value[0])


def test_batch_normalisation_sees_one_micro_batch_at_a_time(few):
    """Running means move twice in a step of two micro-batches, by a tenth each."""
    task, streams = group(channels=2, batch_size=8, micro_batches=2)
    model, state = start(task, streams)
    first = {name: p[0].clone() for name, p in state.parameters.items()}
    means = []
    for micro in range(2):
        index = task.batch(streams, 0, micro)["index"][0]
        x = normalised(pool("digits", 32, "cpu")[index], "digits", torch.float32)
        x = functional.conv2d(
            x, first["layers.0.conv.weight"], first["layers.0.conv.bias"], padding=1
        )
        means.append(x.mean((0, 2, 3)))
    train_step(task, model, state, streams)

    torch.testing.assert_close(
        state.buffers["layers.0.bn.running_mean"][0], 0.9 * 0.1 * means[0] + 0.1 * means[1]
    )


def test_pruned_models_get_statistics_of_their_own(few):
    """Halved weights of the first convolution halve what its batch normalisation must expect."""
    task, streams, model, state = trained(channels=2, batch_size=8)
    halved = {name: p.clone() for name, p in state.parameters.items()}
    for part in ("weight", "bias"):
        halved[f"layers.0.conv.{part}"] *= 0.5
    own = reestimate(task, model, state, streams, state.parameters)
    others = reestimate(task, model, state, streams, halved)

    name = "layers.0.bn.running_mean"
    torch.testing.assert_close(others[name], 0.5 * own[name])
    metrics = evaluate_pruned(task, model, state, streams, halved)
    assert set(metrics) == {(s, m) for s in ("train", "val") for m in ("loss", "error")}


def test_slices_of_evaluation_are_fewer_for_larger_activations():
    def chunk(**fields):
        return group(**fields)[0].eval_chunk

    assert chunk(data="cifar10") == 128
    assert chunk(channels=8) == 512
    assert chunk(model="mlp", data="cifar10") == 2048
    assert chunk(model="mlp") == 4096


# ----------------------------------------------------------------------------- configuration


def problem(**fields):
    with pytest.raises(ValidationError) as caught:
        Config(**fields)
    (error,) = caught.value.errors()
    return error["msg"].removeprefix("Value error, ")


@pytest.mark.parametrize("model", ["mlp", "vgg16"])
def test_images_normalised_beforehand_are_those_normalised_at_every_step(model, monkeypatch):
    """Bit by bit; which of the two it is depends on how large the set is."""
    inputs = []
    for most in (image_classification.READY_BYTES, 0):
        monkeypatch.setattr(image_classification, "READY_BYTES", most)
        task, streams = group(model=model)
        inputs.append(task._inputs(task.eval_data(streams, "val")["index"][0]))

    assert torch.equal(*inputs)


def test_images_grow_to_what_a_model_needs():
    assert Config(model="vgg16").pixels == 32
    assert Config(model="resnet18", data="mnist").pixels == 28
    assert Config(model="resnet18").pixels == 16
    assert Config(model="mlp").pixels == 8
    assert Config(model="mlp", image_size=5).pixels == 5


def test_what_would_be_ignored_or_does_not_fit_is_refused():
    assert problem(model="mlp", channels=8) == (
        "channels (8) has no effect with model: mlp; leave it out"
    )
    assert problem(hidden=8, layers=3) == (
        "hidden (8) has no effect with model: vgg16; leave it out; "
        "layers (3) has no effect with model: vgg16; leave it out"
    )
    assert problem(labels="permuted", label_noise=0.5) == (
        "label_noise (0.5) is for labels: given; labels: permuted are randomised already"
    )
    assert problem(image_size=16) == (
        "image_size (16) is too small for model: vgg16, whose last convolutions would see single "
        "pixels; at least 32"
    )
    assert problem(val_fraction=0.0001) == (
        "val_fraction (0.0001) of 1797 images leaves none for val"
    )
    assert problem(batch_size=1700) == (
        "batch_size (1700) exceeds the 1618 training images; set it to null to train on all of them"
    )
    assert problem(batch_size=None, order_seed=1) == (
        "order_seed has no effect without batch_size: every step takes all training images"
    )
    assert problem(batch_size=10, micro_batches=4) == (
        "micro_batches (4) does not divide the 10 examples of a step"
    )
    assert problem(data="imagenet") == (
        "Input should be 'digits', 'cifar10', 'cifar100' or 'mnist'"
    )


def test_a_sweep_is_told_what_is_missing_before_it_starts(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECTRAL_SWEEPS_DATA", str(tmp_path))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))

    assert ImageClassification.missing(Config()) == []
    (text,) = ImageClassification.missing(Config(data="cifar10"))
    assert "cifar10" in text
