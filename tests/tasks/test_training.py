"""One step, evaluation and the state of a group, on tasks simple enough to check by hand."""

import io

import pytest
import torch

from tasks import Streams, evaluate, make_streams, start, train_step
from tasks.training import GroupState
from tests.tasks.toys import Line, LoopedLine, LoopedNormedLine, NormedLine, TiedLine


def group(task_class, *configs, seeds=None):
    """(task, streams, model, state) at step 0."""
    parsed = [task_class.Config(**config) for config in configs]
    task = task_class(parsed)
    streams = make_streams(parsed, range(len(parsed)) if seeds is None else seeds)
    return task, streams, *start(task, streams)


def trained(task_class, *configs, steps=3, seeds=None):
    task, streams, model, state = group(task_class, *configs, seeds=seeds)
    for _ in range(steps):
        train_step(task, model, state, streams)
    return task, streams, model, state


def plain_loop(task, streams, k, steps):
    """The same training of trial k, with torch.optim and no stacking."""
    config = task.configs[k]
    model = task.build(streams[k]).to(config.dtype)
    if config.optimizer == "adamw":
        optimiser = torch.optim.AdamW(
            model.parameters(),
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
        )
    else:
        optimiser = torch.optim.SGD(
            model.parameters(),
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
    for step in range(steps):
        optimiser.zero_grad()
        total, weight = task.loss(model, {n: t[k] for n, t in task.batch(streams, step, 0).items()})
        (total / weight).backward()
        optimiser.step()
    return model


@pytest.mark.parametrize("steps", [1, 10])
@pytest.mark.parametrize("task_class", [Line, NormedLine, TiedLine, LoopedLine, LoopedNormedLine])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_group_trains_as_a_plain_loop_over_its_trials(task_class, optimizer, steps):
    """1e-12 in float64, parameters and BatchNorm's buffers; every trial has its own settings.

    The large eps matters to the bias before a BatchNorm: its gradient is zero up to rounding noise,
    which AdamW with a small one would blow up to steps of full length.
    """
    shared = {"optimizer": optimizer, "precision": "float64"}
    if optimizer == "adamw":
        shared["eps"] = 1e-2
    configs = [
        {**shared, "lr": 0.01 * (k + 1), "slope": 1.0 + k, "weight_decay": 0.1 * k}
        for k in range(3)
    ]
    task, streams, _, state = trained(task_class, *configs, steps=steps)

    for k in range(3):
        expected = plain_loop(task, streams, k, steps)
        for name, parameter in expected.named_parameters():
            torch.testing.assert_close(
                state.parameters[name][k], parameter.detach(), rtol=1e-12, atol=1e-12
            )
        for name, buffer in expected.named_buffers():
            torch.testing.assert_close(state.buffers[name][k], buffer, rtol=1e-12, atol=1e-12)


def test_micro_batches_add_up_to_the_full_gradient():
    """Sums and weights are added over the parts and divided once, though the weights differ."""
    whole, parts = (
        trained(Line, {"precision": "float64", "lr": 0.1, "micro_batches": m}, steps=5)[3]
        for m in (1, 4)
    )

    torch.testing.assert_close(whole.flat, parts.flat, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("task_class", [Line, TiedLine, LoopedLine, LoopedNormedLine])
@pytest.mark.parametrize("others", [1, 2, 3])
def test_a_trial_has_the_same_bits_alone_and_in_company(task_class, others):
    configs = [{"lr": 0.01 * (k + 1), "slope": 2.0 - k, "examples": 7} for k in range(others + 1)]
    _, _, _, together = trained(task_class, *configs, steps=7)

    for k, config in enumerate(configs):
        _, _, _, alone = trained(task_class, config, steps=7, seeds=[k])
        assert torch.equal(together.flat[k], alone.flat[0])
        for name, buffer in alone.buffers.items():
            assert torch.equal(together.buffers[name][k], buffer[0])


@pytest.mark.parametrize("task_class", [Line, NormedLine, TiedLine])
def test_the_short_way_through_functorch_is_torch_vmap(task_class, monkeypatch):
    """The internal calls that the loss is mapped with give the bits of the public function."""
    configs = [{"lr": 0.01}, {"lr": 0.02}]
    short = trained(task_class, *configs)[3]
    monkeypatch.setattr("tasks.training._vmap", torch.vmap)
    public = trained(task_class, *configs)[3]

    assert torch.equal(short.flat, public.flat)
    assert all(torch.equal(short.buffers[name], b) for name, b in public.buffers.items())


def test_a_resumed_group_goes_on_with_the_same_bits():
    """Through torch.save and torch.load(weights_only=True), buffers and moments included."""
    configs = [{"lr": 0.01, "schedule": "cosine"}, {"lr": 0.02, "schedule": "cosine"}]
    task, streams, model, state = trained(NormedLine, *configs, steps=4)
    file = io.BytesIO()
    torch.save(state.state_dict(), file)
    for _ in range(4):
        train_step(task, model, state, streams)

    task, streams, model, resumed = group(NormedLine, *configs)
    file.seek(0)
    resumed.load(torch.load(file, weights_only=True))
    for _ in range(4):
        train_step(task, model, resumed, streams)

    assert resumed.step == state.step == 8
    assert_equal_states(resumed, state)


def test_trials_saved_apart_resume_in_another_group():
    """A checkpoint belongs to a trial; whom it trains beside after a resume does not matter."""
    configs = [{"lr": 0.01 * (k + 1)} for k in range(3)]
    task, streams, model, state = trained(LoopedNormedLine, *configs, steps=3)
    saved = [state.state_dict(k) for k in (2, 0)]
    for _ in range(3):
        train_step(task, model, state, streams)

    task, streams, model, resumed = group(LoopedNormedLine, configs[2], configs[0], seeds=[2, 0])
    resumed.load(saved)
    for _ in range(3):
        train_step(task, model, resumed, streams)

    assert torch.equal(resumed.flat, state.flat[[2, 0]])


def assert_equal_states(first: GroupState, second: GroupState) -> None:
    assert torch.equal(first.flat, second.flat)
    assert torch.equal(first.first_bad, second.first_bad)
    for a, b in ((first.buffers, second.buffers), (first.optimizer, second.optimizer)):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_saved_state_is_a_copy():
    task, streams, model, state = trained(Line, {})
    saved = state.state_dict()
    before = saved["parameters"]["weight"].clone()
    train_step(task, model, state, streams)

    assert torch.equal(saved["parameters"]["weight"], before)


def test_a_state_of_another_model_is_refused_and_changes_nothing():
    _, _, _, state = trained(Line, {})
    before = state.state_dict()
    double = group(Line, {"precision": "float64"})[3].state_dict()
    normed = group(NormedLine, {})[3].state_dict()
    sgd = group(Line, {"optimizer": "sgd"})[3].state_dict()
    pair = group(Line, {}, {})[3].state_dict()
    later = trained(Line, {}, steps=5)[3].state_dict()

    for saved, message in (
        (
            double,
            "saved parameters, weight: expected torch.float32 [1, 1, 3], got torch.float64 "
            "[1, 1, 3]",
        ),
        (
            pair,
            "saved parameters, weight: expected torch.float32 [1, 1, 3], got torch.float32 "
            "[2, 1, 3]",
        ),
        (
            normed,
            "the saved parameters are not those of this model; unmatched: bias, inner.bias, "
            "inner.weight, norm.bias, norm.weight, outer.bias, outer.weight, weight",
        ),
        (
            sgd,
            "the saved state is of another optimizer: expected the moments first, second, got "
            "velocity",
        ),
        ([before, later], "the saved trials have done different numbers of steps: [3, 5]"),
    ):
        with pytest.raises(ValueError, match="saved") as caught:
            state.load(saved)
        assert str(caught.value) == message
    assert torch.equal(state.parameters["weight"], before["parameters"]["weight"])
    assert state.step == 3


def test_the_first_non_finite_step_is_remembered_and_spares_the_others():
    """An absurd learning rate overflows float32; its companion trains as if it were alone."""
    configs = [{"optimizer": "sgd", "lr": 0.1}, {"optimizer": "sgd", "lr": 1e30}]
    task, streams, model, state = group(Line, *configs)
    finite = []
    for _ in range(6):
        train_step(task, model, state, streams)
        finite.append(bool(torch.isfinite(state.flat[1]).all()))
    alone = trained(Line, configs[0], steps=6)[3]

    assert state.first_bad.tolist() == [-1, finite.index(False) + 1]
    assert torch.equal(state.flat[0], alone.flat[0])


def test_a_loss_that_is_not_finite_counts_as_divergence():
    """Even when the parameters after that step are finite still."""

    class Infinite(Line):
        def loss(self, forward, batch):
            total, weight = super().loss(forward, batch)
            return total + torch.tensor(float("inf")), weight

    state = trained(Infinite, {}, steps=2)[3]

    assert torch.isfinite(state.flat).all()
    assert state.first_bad.tolist() == [1]


def test_metrics_are_means_over_the_split():
    """Against NumPy in float64, on train and val, for each trial."""
    task, streams, model, state = trained(Line, {"slope": 1.0}, {"slope": 3.0})

    metrics = evaluate(task, model, state, streams)

    assert set(metrics) == {("train", "loss"), ("val", "loss")}
    for (split, _), values in metrics.items():
        data = {name: t.double().numpy() for name, t in task.eval_data(streams, split).items()}
        for k in range(2):
            weight = state.parameters["weight"][k, 0].double().numpy()
            bias = float(state.parameters["bias"][k, 0])
            expected = ((data["x"][k] @ weight + bias - data["y"][k]) ** 2).mean()
            # the model computes in float32
            assert float(values[k]) == pytest.approx(expected, rel=1e-5)
        assert values.dtype == torch.float64


def test_metrics_do_not_depend_on_how_the_examples_are_sliced():
    """Sums and weights are added over slices and divided once; the last slice is shorter."""
    task, streams, model, state = trained(Line, {"examples": 10, "precision": "float64"})
    whole = evaluate(task, model, state, streams)
    task.eval_chunk = 4
    sliced = evaluate(task, model, state, streams)

    for key, value in whole.items():
        torch.testing.assert_close(sliced[key], value, rtol=1e-14, atol=0)


def test_evaluation_uses_the_eval_mode_and_changes_nothing():
    """BatchNorm normalises with its running statistics; modes, even mixed ones, are put back."""
    task, streams, model, state = trained(NormedLine, {"precision": "float64"})
    model.inner.eval()
    before = state.state_dict()
    metrics = evaluate(task, model, state, streams)

    assert [m.training for m in model.modules()] == [True, False, True, True]
    after = state.state_dict()
    for name, buffer in before["buffers"].items():
        assert torch.equal(after["buffers"][name], buffer)
    solo = task.build(streams[0]).double().eval()
    solo.load_state_dict(
        {n: t[0] for n, t in {**before["parameters"], **before["buffers"]}.items()}
    )
    total, weight = task.evaluate(
        solo, {n: t[0] for n, t in task.eval_data(streams, "val").items()}
    )["loss"]
    torch.testing.assert_close(metrics["val", "loss"][0], (total / weight).detach())


def test_other_streams_are_evaluated_on_their_own_data():
    """The cached data belong to the streams they were drawn from."""
    task, streams, model, state = trained(Line, {})
    first = evaluate(task, model, state, streams)
    other = evaluate(task, model, state, Streams([99]))

    assert first != other
    assert evaluate(task, model, state, streams) == first


def test_a_step_takes_the_train_mode_back_after_an_evaluation_left_in_eval():
    task, streams, model, state = group(NormedLine, {})
    model.eval()
    train_step(task, model, state, streams)

    assert state.buffers["norm.num_batches_tracked"].tolist() == [1]


def test_starting_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = group(NormedLine, {})[3]

    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(group(NormedLine, {})[3].flat, first.flat)


def test_a_float64_trial_starts_where_the_float32_trial_does():
    narrow, wide = group(Line, {})[3], group(Line, {"precision": "float64"})[3]

    assert torch.equal(narrow.flat.double(), wide.flat)


def test_parameters_are_views_of_the_rows():
    """What an update writes to `flat` is what the model and the spectra read, in its own layout."""
    _, _, model, state = group(NormedLine, {}, {})
    state.flat.copy_(torch.arange(state.flat.numel()).view_as(state.flat))

    begin = 0
    for name, parameter in model.named_parameters():
        end = begin + parameter.numel()
        assert torch.equal(state.parameters[name].flatten(1), state.flat[:, begin:end])
        begin = end


def test_the_skeleton_keeps_its_own_parameters():
    """The group's tensors stand in the model only while it runs."""
    task, streams, model, state = group(TiedLine, {})
    before = model.first.weight
    train_step(task, model, state, streams)

    assert model.first.weight is before
    assert model.second.weight is before


def test_an_error_in_the_loss_leaves_the_model_usable():
    task, streams, model, state = group(Line, {})
    task.loss = lambda forward, batch: forward(batch["y"])
    with pytest.raises(RuntimeError):
        train_step(task, model, state, streams)

    del task.loss
    state.program = None
    train_step(task, model, state, streams)
    assert torch.equal(state.flat, trained(Line, {}, steps=1)[3].flat)


def test_the_streams_of_a_group_follow_its_configurations():
    """A fixed split seed overrides that stream for its trial and no other stream."""
    configs = [Line.Config(split_seed=5), Line.Config()]
    streams = make_streams(configs, [0, 1])

    drawn = streams.bits("split", 0, (4,))
    assert torch.equal(drawn[0], Streams([5]).bits("split", 0, (4,))[0])
    assert torch.equal(drawn[1], Streams([1]).bits("split", 0, (4,))[0])
    assert torch.equal(streams.bits("init", 0, (4,)), Streams([0, 1]).bits("init", 0, (4,)))


def test_a_group_needs_a_seed_for_every_configuration():
    with pytest.raises(ValueError, match=r"^2 seeds for 1 configurations$"):
        start(Line([Line.Config()]), Streams([0, 1]))
