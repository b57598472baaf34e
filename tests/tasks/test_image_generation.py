"""Image generation: the diffusion, the data and their noise, views and couplings, sampling."""

import math
from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError

from spectral import CouplingEnd
from spectral.coupling_checks import check_couplings
from tasks import data, evaluate, images, make_streams, start, train_step
from tasks.diffusion import TIME_STEPS, kept_part, noise_of, noised, sample
from tasks.image_generation import ImageGeneration
from tasks.random import Streams

TINY = {
    "num_images": 30,
    "image_size": 17,
    "channels": (4, 4, 4, 4),
    "groups": 2,
    "time_width": 4,
    "batch_size": 8,
}


def group(*configs, seeds=None):
    parsed = [ImageGeneration.Config(**{**TINY, **config}) for config in configs]
    task = ImageGeneration(parsed)
    return task, make_streams(parsed, range(len(parsed)) if seeds is None else seeds)


def of_trial(batch, k):
    return {name: t[k] for name, t in batch.items()}


def kept_by_hand():
    """The schedule of the paper's code, one time step after the other."""
    kept, result = 1.0, []
    for t in range(1000):
        x = -6 + 12 * t / 999
        kept *= 1 - (1e-5 + (5e-3 - 1e-5) / (1 + math.exp(-x)))
        result.append(kept)
    return result


def test_the_schedule_is_the_papers():
    """b_t = 1e-5 + sigmoid(-6 ... 6) (5e-3 - 1e-5): 2.2e-5 at first, just below 5e-3 at last."""
    kept = kept_part(torch.device("cpu"))
    added = 1 - kept[1:] / kept[:-1]

    assert kept.shape == (TIME_STEPS,)
    assert float(1 - kept[0]) == pytest.approx(1e-5 + 4.99e-3 / (1 + math.exp(6)), rel=1e-9)
    assert float(added[-1]) == pytest.approx(1e-5 + 4.99e-3 / (1 + math.exp(-6)), rel=1e-9)
    torch.testing.assert_close(kept, torch.tensor(kept_by_hand(), dtype=torch.float64))


@pytest.mark.parametrize("time", [0, 400, 999])
def test_a_noisy_image_has_the_mean_and_variance_of_the_diffusion(time):
    """q(x_t | x_0) = N(sqrt(a_t) x_0, 1 - a_t), over 40,000 draws, to four standard errors."""
    clean = torch.full((10_000, 1, 2, 2), 0.7, dtype=torch.float64)
    keys = Streams([0]).bits("noise", 0, (10_000,))[0] & (2**63 - 1)
    noise = noise_of(keys, clean.shape[1:], torch.float64)
    kept = kept_by_hand()[time]

    noisy = noised(clean, torch.full((10_000,), time), noise)

    spread, draws = math.sqrt(1 - kept), noisy.numel()
    mean_error = 4 * spread / math.sqrt(draws)
    assert float(noisy.mean()) == pytest.approx(0.7 * math.sqrt(kept), abs=mean_error)
    assert float(noisy.var()) == pytest.approx(spread**2, rel=4 * math.sqrt(2 / draws))


def test_each_image_is_noised_to_its_own_time():
    clean = torch.randn(3, 1, 2, 2, dtype=torch.float64)
    noise, kept = torch.randn_like(clean), kept_by_hand()

    noisy = noised(clean, torch.tensor([5, 500, 999]), noise)

    for n, time in enumerate((5, 500, 999)):
        expected = math.sqrt(kept[time]) * clean[n] + math.sqrt(1 - kept[time]) * noise[n]
        torch.testing.assert_close(noisy[n], expected)


def test_the_noise_of_an_image_depends_on_its_key_alone():
    """Not on the other images of the slice, nor on how many there are."""
    keys = torch.tensor([5, 2**62, 5, 7])
    noise = noise_of(keys, torch.Size([1, 3, 3]), torch.float32)

    assert torch.equal(noise[0], noise[2])
    assert torch.equal(noise[1], noise_of(keys[1:2], torch.Size([1, 3, 3]), torch.float32)[0])
    assert len({float(n[0, 0, 0]) for n in noise}) == 3


def test_train_and_val_are_disjoint_parts_of_all_images():
    """54,000 and 6,000 of MNIST; of the digits floor(0.9 · 1,797) = 1,617 and 180."""
    for name, train, val in (("digits", 1617, 180), ("mnist", 54_000, 6_000)):
        own = {"data": name, "num_images": None}
        task, streams = group(own, own)
        parts = {split: task.eval_data(streams, split)["image"] for split in task.splits}

        assert {split: tuple(t.shape) for split, t in parts.items()} == {
            "train": (2, train),
            "val": (2, val),
        }
        together = torch.cat([parts["train"], parts["val"]], dim=1)
        assert torch.equal(together.sort(dim=1).values[1], torch.arange(train + val))
        assert not torch.equal(together[0], together[1])


def test_fewer_images_are_a_random_part_of_them():
    """30 of 1,797, of which 27 are trained on; metrics of train on the first 10 of these."""
    task, streams = group({"train_examples": 10})
    whole, _ = group({})
    train, val = (task.eval_data(streams, split)["image"][0] for split in ("train", "val"))

    assert (len(train), len(val)) == (10, 3)
    assert torch.equal(train, whole.eval_data(streams, "train")["image"][0, :10])
    assert len(set(val.tolist()) | set(train.tolist())) == 13
    assert int(val.max()) > 30


def test_evaluation_draws_the_same_times_and_noise_whenever_it_is_asked():
    """So that full and pruned models are compared on the same (a deviation from the paper)."""
    task, streams = group({}, {})
    again, others = group({}, {})
    train, val = (task.eval_data(streams, split) for split in ("train", "val"))
    task.batch(streams, 3, 0)

    for split, expected in (("val", val), ("train", train)):
        repeated = again.eval_data(others, split)
        assert all(torch.equal(repeated[name], t) for name, t in expected.items())
    for name in ("time", "noise"):
        assert not torch.equal(train[name][0], train[name][1])
        assert not torch.equal(train[name][:, :3], val[name])


def test_times_are_equally_likely():
    """Whole numbers 0..999: over 1,617 of them the mean is 499.5 to four standard errors of 7.2."""
    task, streams = group({"num_images": None})
    time = task.eval_data(streams, "train")["time"][0]

    assert int(time.min()) >= 0
    assert int(time.max()) <= 999
    assert float(time.double().mean()) == pytest.approx(499.5, abs=4 * 289 / math.sqrt(1617))


def test_every_step_draws_new_times_and_noise_for_the_images_of_its_epoch():
    """27 images in batches of 8: three steps an epoch."""
    task, streams = group({})
    train = set(task.eval_data(streams, "train")["image"][0].tolist())
    batches = [of_trial(task.batch(streams, step, 0), 0) for step in range(6)]

    for epoch in (batches[:3], batches[3:]):
        seen = torch.cat([batch["image"] for batch in epoch]).tolist()
        assert len(set(seen)) == 24
        assert set(seen) <= train
    for name in ("time", "noise"):
        assert all(not torch.equal(a[name], b[name]) for a, b in pairwise(batches))
    keys = torch.cat([batch["noise"] for batch in batches])
    assert len(set(keys.tolist())) == 48
    assert int(keys.min()) >= 0


@pytest.mark.parametrize(("size", "parts"), [(8, 2), (None, 3)])
def test_micro_batches_are_parts_of_the_whole_batch(size, parts):
    whole, streams = group({"batch_size": size})
    task, others = group({"batch_size": size, "micro_batches": parts})

    pieces = [task.batch(others, 5, micro) for micro in range(parts)]

    for name, expected in whole.batch(streams, 5, 0).items():
        assert torch.equal(torch.cat([piece[name] for piece in pieces], dim=1), expected)


def test_the_loss_is_the_mean_squared_error_of_the_predicted_noise():
    """Image by image against the model run by itself, on trial 1 of a group of two."""
    task, streams = group({}, {"precision": "float32"})
    model, state = start(task, streams)
    metrics = evaluate(task, model, state, streams)
    solo, kept = task.build(streams[1]), torch.tensor(kept_by_hand())
    pool = images.pool("digits", 17, "cpu")

    for split in task.splits:
        drawn, total = of_trial(task.eval_data(streams, split), 1), 0.0
        for place, time, key in zip(drawn["image"], drawn["time"], drawn["noise"], strict=True):
            noise = noise_of(key[None], torch.Size([1, 17, 17]), torch.float32)
            clean = images.normalised(pool[place], "digits", torch.float32)
            noisy = kept[time].sqrt() * clean + (1 - kept[time]).sqrt() * noise
            with torch.no_grad():
                total += float((solo(noisy, time[None]) - noise).square().mean())
        count = len(drawn["image"])
        assert float(metrics[split, "loss"][1]) == pytest.approx(total / count, rel=1e-5)


def test_predicting_no_noise_has_a_loss_of_one():
    """1,617 images of 784 pixels: the mean square of so many normal numbers is 1 ± 0.0013."""
    task, streams = group({"num_images": None, "image_size": 28})
    drawn = of_trial(task.eval_data(streams, "train"), 0)

    total, count = task.evaluate(lambda x, time: torch.zeros_like(x), drawn)["loss"]

    assert total.dtype == torch.float64
    assert float(total / count) == pytest.approx(1.0, abs=4 * 0.0013)


def test_training_lowers_the_loss_on_digits_that_were_not_seen():
    """From above 1, the loss of predicting no noise, to 0.7 at most in 60 steps."""
    small = {"channels": (8, 16, 16, 16), "groups": 4, "time_width": 32, "lr": 0.005}
    task, streams = group({"num_images": 400, "image_size": 17, "batch_size": 32, **small})
    model, state = start(task, streams)
    before = float(evaluate(task, model, state, streams)["val", "loss"])
    for _ in range(60):
        train_step(task, model, state, streams)

    assert before > 1.0
    assert float(evaluate(task, model, state, streams)["val", "loss"]) < 0.7


def test_sampling_with_the_best_prediction_gives_back_a_gaussian():
    """Pixels N(0.5, 0.3²): the best prediction is linear in the noisy image.

    The start, N(0, 1), has nothing of the image, so a share a s² / (a s² + 1 - a) of the mean is
    missing, with a = a_999 = 0.08: less than 1 %. The variance is right up to the size of a step.
    """
    mean, sd, kept = 0.5, 0.3, kept_by_hand()

    def best(x, time):
        """E[noise | x_t] for a Gaussian x_0."""
        a = kept[int(time[0])]
        return math.sqrt(1 - a) * (x - math.sqrt(a) * mean) / (a * sd**2 + 1 - a)

    drawn = sample(best, Streams([0]), 8, size=25, dtype=torch.float64)

    assert drawn.shape == (8, 1, 25, 25)
    missing = kept[-1] * sd**2 / (kept[-1] * sd**2 + 1 - kept[-1])
    draws = drawn.numel()
    assert missing < 0.01
    assert float(drawn.mean()) == pytest.approx(mean * (1 - missing), abs=4 * sd / math.sqrt(draws))
    assert float(drawn.std()) == pytest.approx(sd, rel=0.005 + 4 / math.sqrt(2 * draws))


def test_samples_are_a_function_of_the_streams_and_may_take_fewer_steps():
    task, streams = group({}, {})
    model, called = task.build(streams[0]), []
    model.register_forward_hook(lambda _model, inputs, _y: called.append(int(inputs[1][0])))

    first, second, other = (sample(model, streams[k], 2, steps=4, size=17) for k in (0, 0, 1))

    assert called[:4] == [999, 666, 333, 0]
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.isfinite(first).all()


def test_sampling_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match=r"^steps must be in 2\.\.1000, got 1$"):
        sample(lambda x, time: x, Streams([0]), 1, steps=1)
    with pytest.raises(ValueError, match=r"^sample draws from the streams of one trial, got 2$"):
        sample(lambda x, time: x, Streams([0, 1]), 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_images": 1798}, "num_images (1798) exceeds the 1797 images of digits"),
        (
            {"num_images": 2, "train_fraction": 0.4},
            "train_fraction (0.4) of 2 images leaves none to train on",
        ),
        (
            {"batch_size": 28},
            "batch_size (28) exceeds the 27 training images; set it to null to train on all of "
            "them",
        ),
        (
            {"train_examples": 28},
            "train_examples (28) exceeds the 27 training images; set it to null to take metrics on "
            "all of them",
        ),
        (
            {"batch_size": None, "order_seed": 1},
            "order_seed has no effect without batch_size: every step takes all training images",
        ),
        (
            {"batch_size": None, "train_examples": 28, "order_seed": 3, "micro_batches": 2},
            "train_examples (28) exceeds the 27 training images; set it to null to take metrics on "
            "all of them; order_seed has no effect without batch_size: every step takes all "
            "training images; micro_batches (2) does not divide the 27 examples of a step",
        ),
        ({"micro_batches": 3}, "micro_batches (3) does not divide the 8 examples of a step"),
        (
            {"channels": (4, 4, 5, 4)},
            "channels (4, 4, 5, 4): each must be a multiple of groups (2), and the first also of 4",
        ),
        (
            {"channels": (6, 4, 4, 4)},
            "channels (6, 4, 4, 4): each must be a multiple of groups (2), and the first also of 4",
        ),
        (
            {"channels": (4, 4, 4, 4), "groups": 4},
            "image_size (17): the last feature map is 1 x 1, and 4 groups of its 4 channels are "
            "one number each, whose norm is always 0; take larger images or fewer groups",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValidationError) as caught:
        ImageGeneration.Config(**TINY | settings)

    assert [error["msg"] for error in caught.value.errors()] == [f"Value error, {message}"]


def test_only_real_data_can_be_missing(tmp_path, monkeypatch):
    monkeypatch.setenv(data.ENVIRONMENT, str(tmp_path))

    assert ImageGeneration.missing(ImageGeneration.Config()) == []
    assert ImageGeneration.missing(ImageGeneration.Config(data="mnist")) == data.missing("mnist")


@pytest.fixture(scope="module")
def papers():
    """(task, model) at full size."""
    task, streams = group(
        {"channels": (64, 128, 256, 512), "groups": 32, "time_width": 512, "image_size": 28}
    )
    return task, task.build(streams[0])


def test_the_views_are_the_sixteen_matrices_of_the_paper(papers):
    """A transposed convolution is outputs times inputs, like any other; tconv1 is the last."""
    task, model = papers
    parameters = dict(model.named_parameters())
    shapes = {view.name: view.shape(parameters) for view in task.views(model)}

    assert shapes == {
        "time": (512, 512),
        "conv1": (64, 9),
        "dense1": (64, 512),
        "conv2": (128, 64 * 9),
        "dense2": (128, 512),
        "conv3": (256, 128 * 9),
        "dense3": (256, 512),
        "conv4": (512, 256 * 9),
        "dense4": (512, 512),
        "tconv4": (256, 512 * 9),
        "dense5": (256, 512),
        "tconv3": (128, 256 * 9),
        "dense6": (128, 512),
        "tconv2": (64, 128 * 9),
        "dense7": (64, 512),
        "tconv1": (1, 64 * 9),
    }
    assert list(shapes)[-1] == "tconv1"


def test_the_couplings_are_the_seventeen_of_the_paper(papers):
    """Left vectors against the centre tap of right ones; chance by nine times the channels."""
    task, model = papers
    couplings, views = task.couplings(model), task.views(model)
    parameters = dict(model.named_parameters())

    assert {coupling.name: coupling.length for coupling in couplings} == {
        "conv1->conv2": 9 * 64,
        "conv2->conv3": 9 * 128,
        "conv3->conv4": 9 * 256,
        "dense1->conv2": 9 * 64,
        "dense2->conv3": 9 * 128,
        "dense3->conv4": 9 * 256,
        "dense4->tconv4": 9 * 512,
        "conv4->tconv4": 9 * 512,
        "tconv4->tconv3": 9 * 256,
        "tconv3->tconv2": 9 * 128,
        "tconv2->tconv1": 9 * 64,
        "conv1->tconv1": 9 * 64,
        "dense1->tconv1": 9 * 64,
        "conv2->tconv2": 9 * 128,
        "dense2->tconv2": 9 * 128,
        "conv3->tconv3": 9 * 256,
        "dense3->tconv3": 9 * 256,
    }
    for coupling in couplings:
        channels = coupling.length // 9
        assert coupling.first == CouplingEnd(coupling.first.view, "left")
        assert coupling.second.reshape == (channels, 3, 3)
        assert coupling.second.tap == (1, 1)
        assert not coupling.residual
    shapes = {view.name: view.shape(parameters) for view in views}
    assert check_couplings(views, couplings, shapes) == []
