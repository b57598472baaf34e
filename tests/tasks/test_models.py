"""The transformer and the MLP as plain modules."""

import math

import pytest
import torch
from torch import nn

from tasks.losses import cross_entropy
from tasks.models.mlp import MLP
from tasks.models.transformer import Attention, Transformer, sinusoids
from tasks.random import Streams, initialise_


def transformer(seed=0, **settings):
    values = {"tokens": 7, "length": 5, "width": 12, "heads": 3, "feed_forward": 10} | settings
    model = Transformer(**values)
    model.initialise_(Streams([seed]))
    # biases start at 0: move them, so that a test sees where they enter
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    return model.double()


def test_attention_is_torchs_multihead_attention():
    """With the same parameters, whole sequences and last position, against torch's own module."""
    ours, torchs = (
        Attention(12, 3).double(),
        nn.MultiheadAttention(12, 3, batch_first=True).double(),
    )
    nn.init.normal_(torchs.in_proj_bias)
    ours.load_state_dict(torchs.state_dict())
    x = torch.randn(4, 5, 12, dtype=torch.float64)
    later = torch.ones(5, 5, dtype=torch.bool).triu(1)

    expected, _ = torchs(x, x, x, attn_mask=later, need_weights=False)

    torch.testing.assert_close(ours(x, False), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours(x, True), expected[:, -1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_a_layer_is_torchs_pre_norm_encoder_layer(layer_norm):
    model = transformer(layers=1, layer_norm=layer_norm)
    layer = nn.TransformerEncoderLayer(12, 3, 10, 0.0, batch_first=True, norm_first=True).double()
    own = model.layers[0].state_dict()
    layer.load_state_dict(
        {n.replace("attention.", "self_attn."): t for n, t in own.items()}, strict=layer_norm
    )
    if not layer_norm:
        layer.norm1 = layer.norm2 = nn.Identity()
    x = torch.randn(4, 5, 12, dtype=torch.float64)
    later = torch.ones(5, 5, dtype=torch.bool).triu(1)

    # training mode: torch's fused path for inference does not know the missing norms
    expected = layer.train()(x, src_mask=later)

    torch.testing.assert_close(model.layers[0](x, False), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layers", [1, 2])
def test_the_last_position_alone_is_the_last_of_all(layers):
    """Leaving out what nothing depends on changes no number but by rounding, and no gradient."""
    tokens = torch.randint(7, (6, 5), generator=torch.Generator().manual_seed(0))
    model = transformer(layers=layers, positions="learned")
    of_all, alone = model(tokens)[:, -1], model(tokens, True)

    torch.testing.assert_close(alone, of_all, rtol=1e-12, atol=1e-12)
    gradients = [
        torch.autograd.grad(logits.square().sum(), list(model.parameters()))
        for logits in (alone, of_all)
    ]
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-11, atol=1e-11)


def test_no_position_sees_a_later_one():
    model, tokens = transformer(layers=2), torch.zeros(1, 5, dtype=torch.int64)
    changed = tokens.clone()
    changed[0, 3] = 6

    first, second = model(tokens)[0], model(changed)[0]

    assert torch.equal(first[:3], second[:3])
    assert (first[3:] != second[3:]).any(-1).all()


def test_the_papers_transformer_has_its_number_of_parameters():
    """227,058 for p = 113 without LayerNorm, the one of arXiv 2408.11804."""
    model = Transformer(114, 3, 128, 4, 512)

    assert sum(p.numel() for p in model.parameters()) == 227_058


def test_the_transformer_starts_with_the_papers_distributions():
    """U(±0.1) outside the layers, in_proj Xavier over the fused matrix, the named biases 0."""
    model = Transformer(200, 3, 64, 4, 128, layers=2, positions="learned", layer_norm=True)
    model.initialise_(Streams([0]))
    bounds = {
        "embedding.weight": 0.1,
        "positions": 0.1,
        "decoder.weight": 0.1,
        "layers.0.attention.in_proj_weight": math.sqrt(6 / (64 + 192)),
        "layers.1.attention.out_proj.weight": 1 / 8,
        "layers.0.linear1.weight": 1 / 8,
        "layers.1.linear2.weight": 1 / math.sqrt(128),
    }
    parameters = dict(model.named_parameters())

    for name, bound in bounds.items():
        assert 0.99 * bound < parameters[name].abs().max() <= bound
    for name in ("decoder", "layers.1.attention.out_proj"):
        assert (parameters[f"{name}.bias"] == 0).all()
    assert (parameters["layers.0.attention.in_proj_bias"] == 0).all()
    assert (parameters["layers.0.linear1.bias"] != 0).any()
    assert (parameters["layers.1.norm2.weight"] == 1).all()
    assert not torch.equal(
        parameters["layers.0.linear1.weight"], parameters["layers.1.linear1.weight"]
    )


@pytest.mark.parametrize("width", [6, 7])
def test_sinusoids_are_vaswanis(width):
    table = sinusoids(4, width)

    for position in range(4):
        for column in range(width):
            angle = position / 10000 ** ((column - column % 2) / width)
            expected = math.cos(angle) if column % 2 else math.sin(angle)
            assert float(table[position, column]) == pytest.approx(expected, abs=1e-6)


def test_fixed_positions_are_neither_trained_nor_saved():
    model = transformer(positions="sinusoidal")

    assert "positions" not in dict(model.named_parameters())
    assert "positions" not in model.state_dict()


@pytest.mark.parametrize("model", ["transformer", "mlp"])
def test_models_run_under_vmap_without_falling_back_to_a_loop(model):
    """The fallback is switched off, so an operation without a batching rule raises."""
    if model == "transformer":
        models = [
            transformer(seed, layers=2, layer_norm=True, positions="learned") for seed in (0, 1)
        ]
        inputs = torch.randint(7, (2, 4, 5))
    else:
        models = [initialise_(MLP([3, 5, 4, 2]), Streams([seed])) for seed in (0, 1)]
        inputs = torch.randn(2, 4, 3)
    parameters, buffers = torch.func.stack_module_state(models)
    enabled = torch._C._functorch._is_vmap_fallback_enabled()
    torch._C._functorch._set_vmap_fallback_enabled(False)
    try:
        stacked = torch.vmap(lambda p, b, x: torch.func.functional_call(models[0], (p, b), (x,)))(
            parameters, buffers, inputs
        )
    finally:
        torch._C._functorch._set_vmap_fallback_enabled(enabled)

    for k in range(2):
        torch.testing.assert_close(stacked[k], models[k](inputs[k]))


def test_the_mlp_is_linear_layers_with_relu_between():
    model = initialise_(MLP([3, 5, 2]), Streams([0]))
    x = torch.randn(4, 3)

    expected = model.layers[1](model.layers[0](x).clamp(min=0))
    assert torch.equal(model(x), expected)
    assert [tuple(p.shape) for p in MLP([3, 2], bias=False).parameters()] == [(2, 3)]


def test_cross_entropy_is_torchs():
    logits = 10 * torch.randn(50, 7, dtype=torch.float64)
    labels = torch.randint(7, (50,))

    expected = nn.functional.cross_entropy(logits, labels, reduction="none")
    assert torch.equal(cross_entropy(logits, labels), expected)
