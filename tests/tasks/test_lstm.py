"""The bidirectional LSTM."""

import torch
from torch import nn

from tasks.models.lstm import BidirectionalLSTM


def test_the_lstm_runs_on_the_parameters_it_is_given():
    """Put in its place by name, as in training: outputs and gradients of torch's own LSTM."""
    model = BidirectionalLSTM(5, 3, 2, 4)
    lstm, linear = nn.LSTM(5, 3, 2, batch_first=True, bidirectional=True), nn.Linear(6, 4)
    x = torch.randn(2, 7, 5)
    given = {f"lstm.{name}": p.detach().clone() for name, p in lstm.named_parameters()}
    given |= {f"linear.{name}": p.detach().clone() for name, p in linear.named_parameters()}
    leaves = {name: p.requires_grad_() for name, p in given.items()}

    ours = torch.func.functional_call(model, leaves, (x,))
    theirs = linear(lstm(x)[0])

    assert torch.equal(ours, theirs)
    found = torch.autograd.grad(ours.square().sum(), list(leaves.values()))
    expected = torch.autograd.grad(
        theirs.square().sum(), [*lstm.parameters(), *linear.parameters()]
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
