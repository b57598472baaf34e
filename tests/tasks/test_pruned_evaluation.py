"""Evaluating other parameters than the trained ones, with BatchNorm's statistics made for them."""

import math

import pytest
import torch
from torch import nn

from spectral import decompose
from spectral.pruning import prunable, pruned_parameters, split_parameters
from tasks import evaluate, initialise_, make_streams, start, train_step
from tasks.batch_norm import evaluate_pruned, reestimate
from tests.tasks.toys import Line


class Deep(nn.Module):
    """Two BatchNorms, the second after a Dropout and a ReLU, and a GroupNorm and a LayerNorm."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4, momentum=0.3)
        self.drop = nn.Dropout(0.5)
        self.second = nn.Linear(4, 4)
        self.other = nn.BatchNorm1d(4, momentum=None)
        self.group = nn.GroupNorm(2, 4)
        self.layer = nn.LayerNorm(4)
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        hidden = torch.relu(self.drop(self.norm(self.first(x))))
        return self.head(self.layer(self.group(self.other(self.second(hidden)))))


class DeepLine(Line):
    def build(self, streams):
        return initialise_(Deep(), streams)


class LoopedDeepLine(DeepLine):
    stackable = False


class Twice(nn.Module):
    """One BatchNorm in two places of the same pass."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.norm(2.0 * self.norm(self.first(x)) + 1.0))


class TwiceLine(Line):
    def build(self, streams):
        return initialise_(Twice(), streams)


class LoopedTwiceLine(TwiceLine):
    stackable = False


class Plain(nn.Module):
    """No BatchNorm: nothing to re-estimate."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.group = nn.GroupNorm(2, 4)
        self.layer = nn.LayerNorm(4)
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.layer(self.group(self.first(x))))


class PlainLine(Line):
    def build(self, streams):
        return initialise_(Plain(), streams)


def group(task_class, size=3, **config):
    """(task, model, state, streams), with statistics that training left behind."""
    fields = {"precision": "float64", "examples": 10, **config}
    parsed = [task_class.Config(**fields, slope=1.0 + k) for k in range(size)]
    task = task_class(parsed)
    streams = make_streams(parsed, range(size))
    model, state = start(task, streams)
    generator = torch.Generator().manual_seed(1)
    for buffer in state.buffers.values():
        buffer.copy_(torch.rand(buffer.shape, generator=generator) * 9 + 1)
    return task, model, state, streams


def others(state):
    """Parameters that are not the state's: a multiple of each."""
    return {name: 0.7 * p for name, p in state.parameters.items()}


def linear(x, parameters, name, k):
    return x @ parameters[f"{name}.weight"][k].mT + parameters[f"{name}.bias"][k]


def normed(x, parameters, name, k):
    """What BatchNorm does in train mode: the variance it divides by is the biased one."""
    variance = ((x - x.mean(0)) ** 2).mean(0)
    unit = (x - x.mean(0)) / (variance + 1e-5).sqrt()
    return unit * parameters[f"{name}.weight"][k] + parameters[f"{name}.bias"][k]


def averages(passes):
    """(mean of the means, mean of the unbiased variances) over the inputs of one layer."""
    means = [x.mean(0) for x in passes]
    variances = [((x - x.mean(0)) ** 2).sum(0) / (len(x) - 1) for x in passes]
    return sum(means) / len(means), sum(variances) / len(variances)


def slow_statistics(parameters, inputs, k):
    """{buffer: value} of trial k of `Deep`, from the formulas; `inputs` are the slices."""
    first = [linear(x, parameters, "first", k) for x in inputs]
    hidden = [torch.relu(normed(x, parameters, "norm", k)) for x in first]
    second = [linear(x, parameters, "second", k) for x in hidden]
    found = {}
    for name, passes in (("norm", first), ("other", second)):
        found[f"{name}.running_mean"], found[f"{name}.running_var"] = averages(passes)
        found[f"{name}.num_batches_tracked"] = torch.tensor(len(inputs))
    return found


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("task_class", [DeepLine, LoopedDeepLine])
def test_statistics_are_plain_averages_over_the_slices(task_class, size, monkeypatch):
    """1e-12 in float64: slices of 4, 4 and 2 of the ten training examples, in order."""
    monkeypatch.setattr("tasks.task.Task.eval_chunk", 4)
    task, model, state, streams = group(task_class, size)
    parameters = others(state)

    buffers = reestimate(task, model, state, streams, parameters)

    x = task.eval_data(streams, "train")["x"]
    assert list(buffers) == list(state.buffers)
    for k in range(size):
        expected = slow_statistics(parameters, x[k].split(4), k)
        assert set(expected) == set(buffers)
        for name, value in expected.items():
            assert buffers[name].dtype == state.buffers[name].dtype
            torch.testing.assert_close(buffers[name][k], value, rtol=1e-12, atol=1e-12)
        # twin: another slicing, other parameters and other data are told apart
        for wrong in (
            slow_statistics(parameters, x[k].split(5), k),
            slow_statistics(state.parameters, x[k].split(4), k),
            slow_statistics(parameters, task.eval_data(streams, "val")["x"][k].split(4), k),
        ):
            gap = buffers["norm.running_var"][k] - wrong["norm.running_var"]
            assert float(gap.abs().max()) > 1e-3


@pytest.mark.parametrize("task_class", [DeepLine, LoopedDeepLine])
def test_a_full_split_takes_as_many_passes_as_its_evaluation(task_class):
    """5,000 examples of float32 weights: slices of 4,096 and of the rest, weighing the same."""
    task, model, state, streams = group(task_class, 2, examples=5000, precision="float32")

    buffers = reestimate(task, model, state, streams, state.parameters)

    doubled = {name: p.double() for name, p in state.parameters.items()}
    x = task.eval_data(streams, "train")["x"].double()
    for k in range(2):
        expected = slow_statistics(doubled, x[k].split(4096), k)
        for name, value in expected.items():
            # float32: a hundred roundings of numbers near 1
            torch.testing.assert_close(
                buffers[name][k], value, check_dtype=False, rtol=1e-5, atol=1e-5
            )
        # twin: weighing examples alike would be told apart
        pooled = slow_statistics(doubled, [x[k]], k)["norm.running_mean"]
        assert float((pooled - expected["norm.running_mean"]).abs().max()) > 1e-3


@pytest.mark.parametrize("task_class", [TwiceLine, LoopedTwiceLine])
def test_a_layer_in_two_places_averages_over_both(task_class, monkeypatch):
    """Two slices make four runs of it, each with a quarter of the weight."""
    monkeypatch.setattr("tasks.task.Task.eval_chunk", 5)
    task, model, state, streams = group(task_class)

    buffers = reestimate(task, model, state, streams, state.parameters)

    x = task.eval_data(streams, "train")["x"]
    for k in range(3):
        runs = []
        for some in x[k].split(5):
            runs.append(linear(some, state.parameters, "first", k))
            runs.append(2.0 * normed(runs[-1], state.parameters, "norm", k) + 1.0)
        mean, variance = averages(runs)
        torch.testing.assert_close(buffers["norm.running_mean"][k], mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(buffers["norm.running_var"][k], variance, rtol=1e-12, atol=1e-12)
        assert int(buffers["norm.num_batches_tracked"][k]) == 4


@pytest.mark.parametrize("task_class", [DeepLine, LoopedDeepLine])
def test_a_single_last_example_joins_the_slice_before(task_class, monkeypatch):
    """It has no variance of its own: nine examples are slices of 4 and 5."""
    monkeypatch.setattr("tasks.task.Task.eval_chunk", 4)
    task, model, state, streams = group(task_class, examples=9)

    buffers = reestimate(task, model, state, streams, state.parameters)

    x = task.eval_data(streams, "train")["x"]
    for k in range(3):
        for name, value in slow_statistics(state.parameters, x[k].split([4, 5]), k).items():
            torch.testing.assert_close(buffers[name][k], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("task_class", [DeepLine, LoopedDeepLine])
def test_what_training_left_behind_does_not_enter(task_class):
    """Not even where it is not finite."""
    task, model, state, streams = group(task_class)
    expected = reestimate(task, model, state, streams, state.parameters)
    for buffer in state.buffers.values():
        buffer.fill_(math.nan if buffer.is_floating_point() else 7)

    buffers = reestimate(task, model, state, streams, state.parameters)

    assert all(torch.equal(buffers[name], expected[name]) for name in expected)


@pytest.mark.parametrize("task_class", [DeepLine, LoopedDeepLine])
def test_a_trials_statistics_are_the_same_alone_and_in_company(task_class):
    """1e-14: one vmapped kernel at K = 1 may add up in another order."""
    task, model, state, streams = group(task_class)
    together = reestimate(task, model, state, streams, state.parameters)
    alone = task_class([task.configs[1]])
    own = make_streams(alone.configs, [1])
    skeleton, single = start(alone, own)

    buffers = reestimate(alone, skeleton, single, own, single.parameters)

    for name, value in buffers.items():
        torch.testing.assert_close(together[name][1], value[0], rtol=1e-14, atol=1e-14)


def everything(model, state):
    """What must be as before: bits, modes, momenta, hooks, and the very tensors in the modules."""
    modules = list(model.modules())
    return (
        {n: t.clone() for n, t in {**state.parameters, **state.buffers}.items()},
        {n: t.clone() for n, t in model.state_dict().items()},
        [id(t) for t in (*model.parameters(), *model.buffers())],
        [(m.training, getattr(m, "momentum", None), len(m._forward_pre_hooks)) for m in modules],
        (state.step, state.first_bad.tolist(), torch.get_rng_state().tolist()),
    )


def same(left, right):
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)
    return left == right


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("task_class", [DeepLine, LoopedDeepLine])
def test_model_and_state_are_as_before(task_class, mixed):
    """Modes that differ from module to module too."""
    task, model, state, streams = group(task_class)
    if mixed:
        model.norm.eval()
        model.drop.eval()
    before = everything(model, state)

    evaluate_pruned(task, model, state, streams, others(state))

    assert all(same(a, b) for a, b in zip(before, everything(model, state), strict=True))


@pytest.mark.parametrize("task_class", [DeepLine, LoopedDeepLine])
def test_an_error_in_the_tasks_code_leaves_everything_as_before(task_class, monkeypatch):
    """It comes on the second slice, after BatchNorm has run."""
    monkeypatch.setattr("tasks.task.Task.eval_chunk", 6)

    class Broken(task_class):
        def evaluate(self, forward, data):
            found = super().evaluate(forward, data)
            if len(data["x"]) < 6:
                raise ArithmeticError("no such slice")
            return found

    task, model, state, streams = group(Broken)
    before = everything(model, state)

    with pytest.raises(ArithmeticError, match="no such slice"):
        reestimate(task, model, state, streams, others(state))

    assert all(same(a, b) for a, b in zip(before, everything(model, state), strict=True))


def test_without_batch_norm_no_pass_is_made():
    """GroupNorm and LayerNorm keep no statistics; the task's code is never called."""

    class Idle(PlainLine):
        def evaluate(self, forward, data):
            raise AssertionError("a forward pass")

        def eval_data(self, streams, split):
            raise AssertionError("data")

    task, model, state, streams = group(Idle)
    assert reestimate(task, model, state, streams, others(state)) == {}

    class Counting(Plain):
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.ones(2))

    class Kept(Idle):
        def build(self, streams):
            return initialise_(Counting(), streams)

    task, model, state, streams = group(Kept)
    buffers = reestimate(task, model, state, streams, others(state))
    assert list(buffers) == ["scale"]
    assert buffers["scale"] is state.buffers["scale"]


def test_batch_norm_without_statistics_is_left_alone():
    """It normalises by each slice in any mode; there is nothing to keep."""

    class Stateless(PlainLine):
        def build(self, streams):
            model = Plain()
            model.group = nn.BatchNorm1d(4, track_running_stats=False)
            return initialise_(model, streams)

    task, model, state, streams = group(Stateless)
    assert reestimate(task, model, state, streams, others(state)) == {}


def test_a_task_without_a_training_split_is_refused():
    class Untrained(DeepLine):
        splits = ("test", "val")

    task, model, state, streams = group(Untrained)
    with pytest.raises(ValueError, match="has no split") as caught:
        reestimate(task, model, state, streams, state.parameters)
    assert str(caught.value) == (
        "task Untrained has no split 'train' to re-estimate BatchNorm's statistics over; "
        "it has test, val"
    )


@pytest.mark.parametrize("task_class", [DeepLine, LoopedDeepLine])
def test_other_parameters_are_evaluated_as_if_they_were_the_states(task_class):
    """And without any, nothing changes, to the bit."""
    task, model, state, streams = group(task_class)
    before = evaluate(task, model, state, streams)
    chosen, buffers = others(state), {n: 2 * b for n, b in state.buffers.items()}

    found = evaluate(task, model, state, streams, parameters=chosen, buffers=buffers)

    again = evaluate(task, model, state, streams)
    assert all(torch.equal(again[key], before[key]) for key in before)
    for named, values in ((state.parameters, chosen), (state.buffers, buffers)):
        for name, tensor in named.items():
            tensor.copy_(values[name])
    expected = evaluate(task, model, state, streams)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-14, atol=0.0)
        assert not torch.allclose(value, before[key], rtol=1e-3)  # twin


def test_parameters_of_another_model_are_refused():
    task, model, state, streams = group(PlainLine)
    missing = {n: p for n, p in state.parameters.items() if n != "head.bias"}
    with pytest.raises(ValueError, match="unmatched") as caught:
        evaluate(task, model, state, streams, parameters=missing)
    assert str(caught.value) == (
        "the parameters to run with are not those of this model; unmatched: head.bias"
    )
    unstacked = {n: p[0] for n, p in state.parameters.items()}
    with pytest.raises(ValueError, match="expected") as caught:
        evaluate_pruned(task, model, state, streams, unstacked)
    assert str(caught.value) == (
        "parameters to run with, first.weight: expected [3, 4, 3], got [4, 3]"
    )
    with pytest.raises(ValueError, match=r"^the buffers to run with are not .*; unmatched: extra$"):
        evaluate(task, model, state, streams, buffers={"extra": torch.zeros(3)})


@pytest.mark.parametrize("task_class", [DeepLine, LoopedDeepLine])
def test_pruned_models_are_evaluated_with_their_own_statistics(task_class):
    """evaluate() of the parameters and the statistics made for them; stale ones give another."""
    task, model, state, streams = group(task_class)
    parameters = others(state)

    found = evaluate_pruned(task, model, state, streams, parameters)

    buffers = reestimate(task, model, state, streams, parameters)
    expected = evaluate(task, model, state, streams, parameters=parameters, buffers=buffers)
    stale = evaluate(task, model, state, streams, parameters=parameters)
    assert set(found) == {("train", "loss"), ("val", "loss")}
    for key, value in expected.items():
        assert torch.equal(found[key], value)
        assert not torch.allclose(found[key], stale[key], rtol=1e-3)


def decompositions(views, state):
    """With bases, trial after trial."""
    stacks = [view.read(state.parameters, stacked=True) for view in views]
    matrices = [stack[k] for k in range(len(state)) for stack in stacks]
    return decompose(matrices, basis=True)


def test_a_model_whose_matrices_have_rank_one_needs_one_direction():
    """Kept top 1 / R: the same losses. Kept bottom: what is left does not see the input.

    1e-12 in float64. The loss of a constant c is the mean of (y - c)^2.
    """

    class TwoLayers(Line):
        def build(self, streams):
            return initialise_(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)), streams)

    task, model, state, streams = group(TwoLayers)
    weight = state.parameters["0.weight"]
    weight.copy_(weight[:, :, :1] * weight[:, :1, :])
    views = prunable(model)
    assert [view.name for view in views] == ["0"]
    full = evaluate(task, model, state, streams)

    top, bottom = split_parameters(
        views, state.parameters, decompositions(views, state), 0.3, stacked=True
    )
    assert top["1.weight"] is bottom["1.weight"] is state.parameters["1.weight"]

    kept_top = evaluate_pruned(task, model, state, streams, top)
    kept_bottom = evaluate_pruned(task, model, state, streams, bottom)
    for split in task.splits:
        torch.testing.assert_close(
            kept_top[split, "loss"], full[split, "loss"], rtol=1e-12, atol=1e-12
        )
        y = task.eval_data(streams, split)["y"]
        head, bias = state.parameters["1.weight"], state.parameters["0.bias"]
        constant = (head[:, 0] * bias).sum(1) + state.parameters["1.bias"][:, 0]
        expected = ((y - constant[:, None]) ** 2).mean(1)
        torch.testing.assert_close(kept_bottom[split, "loss"], expected, rtol=1e-9, atol=1e-9)


def test_a_trained_group_is_pruned_and_trains_on_with_the_same_bits():
    """Evaluation at both ends between steps is invisible to training, BatchNorm included."""

    def trained(pruning):
        task, model, state, streams = group(DeepLine, precision="float32", lr=0.01)
        model.drop.p, model.other.momentum = 0.0, 0.1  # what vmapped training cannot do
        for _ in range(3):
            train_step(task, model, state, streams)
            if pruning:
                views = prunable(model)
                own = decompositions(views, state)
                for end in ("top", "bottom"):
                    parameters = pruned_parameters(
                        views, state.parameters, own, 0.5, end, stacked=True
                    )
                    found = evaluate_pruned(task, model, state, streams, parameters)
                    assert all(value.isfinite().all() for value in found.values())
        return state

    quiet, pruned = trained(False), trained(True)
    assert torch.equal(quiet.flat, pruned.flat)
    assert all(torch.equal(quiet.buffers[n], b) for n, b in pruned.buffers.items())
