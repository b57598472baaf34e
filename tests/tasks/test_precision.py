"""Mixed precision against plain loops with torch.autocast, torch.optim and torch.amp.GradScaler."""

import io
from typing import Annotated, ClassVar

import pytest
import torch
from torch import nn

from tasks import (
    PerTrial,
    Task,
    TrainingConfig,
    evaluate,
    initialise_,
    make_streams,
    start,
    train_step,
)
from tasks.losses import number_of
from tasks.models.mlp import MLP
from tasks.precision import (
    INITIAL,
    INTERVAL,
    exact_float32,
    forward_of,
    new_scaler,
    update_scale_,
)

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
EXAMPLES = 8


class Images(nn.Module):
    """Convolution, BatchNorm, GroupNorm and a layer that reads their output."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(1, 8, 3, bias=False)
        self.batch = nn.BatchNorm2d(8)
        self.groups = nn.GroupNorm(2, 8)
        self.output = nn.Linear(32, 1)

    def forward(self, x):
        x = torch.relu(self.batch(self.convolution(x.view(-1, 1, 4, 4))))
        return self.output(self.groups(x).flatten(1))


class Sounds(nn.Module):
    """A bidirectional LSTM in two layers."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 6, 2, batch_first=True, bidirectional=True)
        self.output = nn.Linear(12, 1)

    def forward(self, x):
        return self.output(self.lstm(x.view(-1, 4, 4))[0][:, -1])


class Regression(Task):
    """Least squares on `size` times a wave, by any of the models; sixteen inputs."""

    class Config(TrainingConfig):
        streams: ClassVar[tuple[str, ...]] = ("init", "split")
        model: str = "mlp"
        size: Annotated[float, PerTrial] = 1.0

    stackable = False

    def build(self, streams):
        models = {"mlp": lambda: MLP([16, 16, 1]), "images": Images, "sounds": Sounds}
        return initialise_(models[self.config.model](), streams)

    def eval_data(self, streams, split):
        shape = (EXAMPLES, 16)
        x = streams.normal("split", self.splits.index(split), shape, self.config.dtype)
        size = self.per_trial("size").to(x.dtype)[:, None]
        return {"x": x, "y": torch.sin(x.sum(-1)) * size}

    def batch(self, streams, step, micro):
        size = EXAMPLES // self.config.micro_batches
        part = slice(micro * size, (micro + 1) * size)
        return {name: t[:, part] for name, t in self.eval_data(streams, "train").items()}

    def loss(self, forward, batch):
        output = forward(batch["x"])
        assert output.dtype == self.config.dtype
        squares = (output.squeeze(-1) - batch["y"]) ** 2
        return squares.sum(), torch.tensor(len(squares))

    def evaluate(self, forward, data):
        return {"loss": self.loss(forward, data)}


class Stacked(Regression):
    stackable = True


def group(task_class, *own, seeds=None):
    configs = [task_class.Config(**{"precision": "float16", **config}) for config in own]
    task = task_class(configs)
    streams = make_streams(configs, range(len(own)) if seeds is None else seeds)
    return task, streams, *start(task, streams)


def trained(task_class, *own, steps, seeds=None):
    task, streams, model, state = group(task_class, *own, seeds=seeds)
    for _ in range(steps):
        train_step(task, model, state, streams)
    return task, streams, model, state


def plain_loop(task, streams, k, steps):
    """(model, scaler) of trial k after the same training, as torch's own examples write it."""
    config = task.configs[k]
    dtype = DTYPES[config.precision]
    model = task.build(streams[k])
    if config.optimizer == "adamw":
        optimiser = torch.optim.AdamW(
            model.parameters(), lr=config.lr, weight_decay=config.weight_decay, eps=config.eps
        )
    else:
        optimiser = torch.optim.SGD(model.parameters(), lr=config.lr, momentum=config.momentum)
    scaler = torch.amp.GradScaler("cpu", enabled=config.precision == "float16")
    batch = {name: t[k] for name, t in task.batch(streams, 0, 0).items()}
    for _ in range(steps):
        optimiser.zero_grad()
        with torch.autocast("cpu", dtype=dtype):
            output = model(batch["x"])
        loss = nn.functional.mse_loss(output.float().squeeze(-1), batch["y"])
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
    return model, scaler


CASES = [
    *((Stacked, "mlp", o, p) for o in ("adamw", "sgd") for p in DTYPES),
    *((Regression, m, "adamw", p) for m in ("mlp", "images") for p in DTYPES),
    (Regression, "sounds", "sgd", "bfloat16"),  # torch has no LSTM in float16 on most CPUs
]


@pytest.mark.parametrize(("task_class", "model", "optimizer", "precision"), CASES)
def test_a_group_trains_as_a_plain_loop_with_autocast(task_class, model, optimizer, precision):
    """Trials of targets 1 and 100: with float16 the second one skips steps at the beginning.

    Weights differ by less than this part of the way that they have gone in ten steps. One by one
    the operations are the same, in another order of float32 sums: 1e-5. Stacked, a layer's product
    is rounded once more before the bias is added: twice the rounding of the dtype, 2^-8 or 2^-11.
    """
    shared = {"precision": precision, "model": model, "optimizer": optimizer}
    shared |= {"eps": 1e-2, "weight_decay": 0.1} if optimizer == "adamw" else {"momentum": 0.5}
    own = [{**shared, "lr": 0.01, "size": 1.0}, {**shared, "lr": 0.002, "size": 100.0}]
    task, streams, _, state = trained(task_class, *own, steps=10)
    begun = group(task_class, *own)[3]
    rounding = {"bfloat16": 2.0**-8, "float16": 2.0**-11}[precision]
    allowed = 2 * rounding if task_class.stackable else 1e-5

    for k in range(2):
        expected, scaler = plain_loop(task, streams, k, 10)
        rows = torch.cat([p.detach().flatten() for p in expected.parameters()])
        assert (rows - state.flat[k]).norm() < allowed * (rows - begun.flat[k]).norm()
        if precision == "float16":
            assert float(state.scaler["scale"][k]) == scaler.get_scale()
        for name, buffer in expected.named_buffers():
            torch.testing.assert_close(state.buffers[name][k], buffer, rtol=1e-5, atol=1e-5)
    if precision == "float16":
        assert state.scaler["taken"].tolist()[1] < 10
    assert state.first_bad.tolist() == [-1, -1]


@pytest.mark.parametrize("base", [Stacked, Regression])
@pytest.mark.parametrize("precision", ["float32", "float64", *DTYPES])
def test_products_are_taken_in_the_dtype_that_the_precision_names(base, precision):
    """In training and in evaluation, under vmap too."""
    seen = set()

    class Watched(MLP):
        def forward(self, x):
            seen.add((self.training, self.layers[0](x).dtype))
            return super().forward(x)

    class Watching(base):
        def build(self, streams):
            return initialise_(Watched([16, 16, 1]), streams)

    task, streams, model, state = trained(Watching, {"precision": precision}, steps=1)
    evaluate(task, model, state, streams)

    dtype = getattr(torch, precision)
    assert seen == {(True, dtype), (False, dtype)}


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_weights_and_moments_are_float32(precision):
    state = trained(Stacked, {"precision": precision}, steps=1)[3]

    assert state.flat.dtype == torch.float32
    assert {moment.dtype for moment in state.optimizer.values()} == {torch.float32}


@pytest.mark.parametrize("task_class", [Stacked, Regression])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_trial_has_the_same_bits_alone_and_in_company(task_class, precision):
    """With one that skips steps beside it."""
    own = [{"precision": precision, "lr": 0.01, "size": 10.0 ** (2 * k)} for k in range(3)]
    task, streams, model, together = trained(task_class, *own, steps=6)
    metrics = evaluate(task, model, together, streams)

    for k in range(3):
        task, streams, model, alone = trained(task_class, own[k], steps=6, seeds=[k])
        assert torch.equal(together.flat[k], alone.flat[0])
        for name, value in alone.scaler.items():
            assert torch.equal(together.scaler[name][k], value[0])
        for key, value in evaluate(task, model, alone, streams).items():
            assert torch.equal(metrics[key][k], value[0])


def test_an_overflow_skips_the_step_of_its_own_trial_only():
    """Residuals of 1e4 times the first scale leave float16; halved often enough they fit."""
    own = [{"lr": 0.01, "weight_decay": 0.1, "size": size} for size in (0.1, 1e4)]
    task, streams, model, state = group(Stacked, *own)
    before = state.state_dict()
    train_step(task, model, state, streams)
    after = state.state_dict()

    for name in before["parameters"]:
        assert not torch.equal(after["parameters"][name][0], before["parameters"][name][0])
        assert torch.equal(after["parameters"][name][1], before["parameters"][name][1])
        for moment in ("first", "second"):
            assert not after["optimizer"][moment][name][1].any()
    assert after["scaler"]["scale"].tolist() == [INITIAL, INITIAL / 2]
    assert after["scaler"]["taken"].tolist() == [1, 0]

    for _ in range(20):
        train_step(task, model, state, streams)

    taken = int(state.scaler["taken"][1])
    assert 0 < taken < 20
    assert float(state.scaler["scale"][1]) == INITIAL * 0.5 ** (21 - taken)
    assert not torch.equal(state.flat[1, :10], before["parameters"]["layers.0.weight"][1, 0, :10])
    assert state.first_bad.tolist() == [-1, -1]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_skipped_step_keeps_parameters_and_moments_that_have_moved(optimizer):
    """Not only zeros: the overflow comes in the middle of the training."""
    own = {"optimizer": optimizer, "lr": 0.01, "weight_decay": 0.1}
    task, streams, model, state = trained(Stacked, own, steps=3)
    state.scaler["scale"].fill_(2.0**40)
    before = state.state_dict()
    train_step(task, model, state, streams)
    after = state.state_dict()

    for section in ("parameters", *state.optimizer):
        old = before["optimizer"].get(section, before["parameters"])
        new = after["optimizer"].get(section, after["parameters"])
        assert all(torch.equal(new[name], old[name]) for name in old)
    assert state.scaler["scale"].tolist() == [2.0**39]


def test_the_scale_follows_that_of_torch():
    """Against the kernel of GradScaler, over overflows, growth, and a scale that cannot grow."""
    generator = torch.Generator().manual_seed(0)
    ours = new_scaler("float16", 3, torch.device("cpu"))
    ours["scale"][2] = 2.0**127
    scale, good = ours["scale"].clone(), [torch.zeros(1, dtype=torch.int32) for _ in range(3)]
    rare = torch.tensor([0.002, 0.0, 0.0])

    for _ in range(2 * INTERVAL + 5):
        taken = torch.rand(3, generator=generator) >= rare
        update_scale_(ours, taken)
        for k in range(3):
            torch._amp_update_scale_(
                scale[k : k + 1], good[k], (~taken[k : k + 1]).float(), 2.0, 0.5, INTERVAL
            )

    assert torch.equal(ours["scale"], scale)
    assert ours["good"].tolist() == [int(g) for g in good]
    assert ours["scale"][0] < INITIAL < ours["scale"][1]


def test_a_resumed_trial_goes_on_with_the_same_bits():
    """While its scale is still on the way down."""
    own = [{"lr": 0.01, "size": size} for size in (1.0, 1e4)]
    task, streams, model, state = trained(Stacked, *own, steps=4)
    file = io.BytesIO()
    torch.save(state.state_dict(1), file)
    for _ in range(10):
        train_step(task, model, state, streams)

    task, streams, model, resumed = group(Stacked, own[1], seeds=[1])
    file.seek(0)
    resumed.load(torch.load(file, weights_only=True))
    for _ in range(10):
        train_step(task, model, resumed, streams)

    assert torch.equal(resumed.flat[0], state.flat[1])
    for name, value in resumed.scaler.items():
        assert torch.equal(value[0], state.scaler[name][1])
    assert int(resumed.scaler["taken"]) > 0


def test_a_state_of_another_precision_is_refused():
    scaled = group(Stacked, {})[3]
    plain = group(Stacked, {"precision": "bfloat16"})[3]

    for state, saved, where in (
        (scaled, plain.state_dict(), "this state and not in the saved one"),
        (plain, scaled.state_dict(), "the saved state and not in this one"),
    ):
        with pytest.raises(ValueError, match="another precision") as caught:
            state.load(saved)
        assert str(caught.value) == (
            f"the saved state is of another precision: the loss scale of float16 is in {where}"
        )


def test_a_state_saved_before_there_were_loss_scales_is_taken_over():
    task, streams, model, state = trained(Stacked, {"precision": "float32"}, steps=2)
    saved = state.state_dict()
    del saved["scaler"]
    train_step(task, model, state, streams)
    state.load(saved)

    assert state.step == 2
    assert torch.equal(state.parameters["layers.0.weight"], saved["parameters"]["layers.0.weight"])


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_micro_batches_add_up_to_the_full_gradient(precision):
    """Sums over the examples are in 16 bits at worst where they leave a matrix product."""
    own = {"precision": precision, "optimizer": "sgd", "lr": 0.1, "momentum": 0.5}
    begun = group(Stacked, own)[3].flat
    whole, parts = (trained(Stacked, {**own, "micro_batches": m}, steps=3)[3].flat for m in (1, 4))

    allowed = {"bfloat16": 2.0**-7, "float16": 2.0**-10}[precision]
    assert (whole - parts).norm() < (whole - begun).norm() * allowed


class Rooted(Stacked):
    """The gradient of the root of 0 is not finite, the loss is."""

    def loss(self, forward, batch):
        total, weight = super().loss(forward, batch)
        return total + (total * 0.0).sqrt(), weight


class Infinite(Stacked):
    def loss(self, forward, batch):
        total, weight = super().loss(forward, batch)
        return total + torch.tensor(float("inf")), weight


def test_a_loss_that_is_not_finite_is_divergence():
    assert trained(Infinite, {}, steps=2)[3].first_bad.tolist() == [1]


def test_a_gradient_that_no_scale_makes_finite_is_divergence():
    """From 2^16 it takes 31 halvings to fall below 2^-14."""
    state = trained(Rooted, {}, steps=40)[3]

    assert state.first_bad.tolist() == [32]
    assert torch.isfinite(state.flat).all()


def test_metrics_are_those_of_the_model_under_autocast():
    task, streams, model, state = trained(Stacked, {"precision": "bfloat16"}, steps=2)
    solo = task.build(streams)
    solo.load_state_dict({name: p[0] for name, p in state.parameters.items()})
    data = {name: t[0] for name, t in task.eval_data(streams, "val").items()}
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        output = solo(data["x"])
    expected = nn.functional.mse_loss(output.float().squeeze(-1), data["y"])

    found = evaluate(task, model, state, streams)["val", "loss"][0]

    # bfloat16 activations rounded to the other neighbour; in float32 it is further off
    assert float(found) == pytest.approx(float(expected), rel=1e-3)


def test_everything_a_model_returns_comes_back_in_float32():
    class Several(nn.Module):
        def forward(self, x, *, count):
            y = x @ x
            assert y.dtype == torch.bfloat16
            return {"y": (y, [y + 1]), "count": torch.tensor(count), "name": "several"}

    model = Several()
    forward = forward_of(model, "bfloat16", torch.device("cpu"), vmapped=True)
    found = forward(torch.eye(2), count=3)

    assert found["y"][0].dtype == found["y"][1][0].dtype == torch.float32
    assert found["count"].dtype == torch.int64
    assert found["name"] == "several"
    assert forward_of(model, "float32", torch.device("cpu"), vmapped=True) is model


@pytest.fixture
def float32_is_float32():
    allowed = torch.backends.cudnn.allow_tf32
    exact_float32()
    yield
    torch.backends.cudnn.allow_tf32 = allowed


def test_neither_convolutions_nor_lstms_are_rounded_to_tf32(float32_is_float32):
    """By the newer of torch's two interfaces; the older one still answers, without a warning."""
    cudnn = torch.backends.cudnn

    assert "tf32" not in (cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision)
    assert torch.get_float32_matmul_precision() == "highest"
    with cudnn.flags(enabled=False):
        pass


@pytest.mark.gpu
def test_a_convolution_in_float32_is_exact_to_float32_on_a_gpu(float32_is_float32):
    """Sums of 576 products of size one: TF32 would be off by 1e-3 or so."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    image, kernel = torch.randn(8, 64, 16, 16).cuda(), torch.randn(64, 64, 3, 3).cuda() / 24
    exact = nn.functional.conv2d(image.double(), kernel.double())

    assert (nn.functional.conv2d(image, kernel) - exact).abs().max() < 1e-4


def test_a_number_of_losses_is_made_on_the_device_of_the_losses():
    """So that nothing waits for a copy: here on the device without memory."""
    assert number_of(torch.zeros(3, device="meta")).device.type == "meta"
    count = number_of(torch.zeros(3, 2))
    assert (count.dtype, count.shape, int(count)) == (torch.int64, (), 3)
