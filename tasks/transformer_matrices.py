"""Where the matrices of a `tasks.models.transformer.Transformer` are, and which vectors meet."""

from __future__ import annotations

from spectral.views import Coupling, CouplingEnd, MatrixView


def transformer_views(layers: int, width: int, heads: int) -> list[MatrixView]:
    """Embedding, attention (fused, query, key, value, their heads), feed-forward, decoder."""
    views = [MatrixView("embedding", "embedding.weight")]
    for layer in range(layers):
        views += attention_views(f"layers.{layer}.attention", width, heads)
        for part in ("linear1", "linear2"):
            views.append(MatrixView(f"layers.{layer}.{part}", f"layers.{layer}.{part}.weight"))
    return [*views, MatrixView("decoder", "decoder.weight")]


def transformer_couplings(layers: int, width: int, heads: int, feed_forward: int) -> list[Coupling]:
    """The paper's, five in a layer and one to enter it; then those past one part of a layer.

    What a layer writes to the residual stream meets the matrix that reads it next: the
    embedding (whose right vectors are its output), `out_proj` and `linear2` meet the next
    `in_proj` (fused), `linear1` or decoder. Inside a layer the heads' queries meet the keys,
    left against left, as one group; value meets `out_proj`, and `linear1` meets `linear2`.
    `residual` ones skip one reader: embedding and `linear1`, `out_proj` and decoder, and so on.
    `per_head` ones are value and `out_proj` again, head by head.

    Source: Yunis et al., arXiv 2408.11804 (their code): 6 couplings of one layer, 61 of twelve,
    the heads of a layer's queries and keys counted as one.
    """
    written: list[CouplingEnd] = [CouplingEnd("embedding", "right")]
    read: list[CouplingEnd] = []
    inside: list[list[Coupling]] = []
    for layer in (f"layers.{index}" for index in range(layers)):
        attention = f"{layer}.attention"
        read += [_right(f"{attention}.in_proj"), _right(f"{layer}.linear1")]
        written += [_left(f"{attention}.out_proj"), _left(f"{layer}.linear2")]
        inside.append(attention_couplings(attention, width, heads))
        hidden = _left(f"{layer}.linear1"), _right(f"{layer}.linear2")
        inside.append([Coupling(*hidden, feed_forward)])
    read.append(_right("decoder"))
    couplings = []
    for writer, reader, part in zip(written, read, [*inside, []], strict=True):
        couplings += [Coupling(writer, reader, width), *part]
    skipping = zip(written, read[1:], strict=False)
    return [
        *couplings,
        *(Coupling(first, second, width, residual=True) for first, second in skipping),
    ]


def _left(view: str) -> CouplingEnd:
    return CouplingEnd(view, "left")


def _right(view: str) -> CouplingEnd:
    return CouplingEnd(view, "right")


def attention_couplings(prefix: str, width: int, heads: int) -> list[Coupling]:
    """Inside one `tasks.models.transformer.Attention` whose name is `prefix`.

    `query->key[h]` of each head h, left vectors against left ones of length D/H, averaged as the
    group `query->key`; and value, whole, against `out_proj`, as the paper's code has it. Its text
    has that head by head too: `value->out_proj[h]`, left vectors of the rows of value that are
    head h's against right ones of the columns of `out_proj` that read it, of length D/H, averaged
    as the group `value->out_proj.heads`, `per_head`.
    """
    # without ".heads", a figure would shorten the group's name to that of value->out_proj, whole
    group = f"{prefix}.value->out_proj"
    outputs = [
        Coupling(
            _left(f"{prefix}.value[{h}]"),
            _right(f"{prefix}.out_proj[{h}]"),
            width // heads,
            group=f"{group}.heads",
            name=f"{group}[{h}]",
            per_head=True,
        )
        for h in range(heads)
    ]
    name = f"{prefix}.query->key"
    queries = [
        Coupling(
            _left(f"{prefix}.query[{h}]"),
            _left(f"{prefix}.key[{h}]"),
            width // heads,
            group=name,
            name=f"{name}[{h}]",
        )
        for h in range(heads)
    ]
    output = _right(f"{prefix}.out_proj")
    return [*queries, Coupling(_left(f"{prefix}.value"), output, width), *outputs]


def attention_views(prefix: str, width: int, heads: int) -> list[MatrixView]:
    """The matrices of one `tasks.models.transformer.Attention` whose name is `prefix`.

    `in_proj` [3D, D] whole; its thirds `query`, `key`, `value` [D, D]; the rows of each head
    h, `query[h]` [D/H, D], and likewise key and value; `out_proj` [D, D]; and on demand the
    columns of it that read head h, `out_proj[h]` [D, D/H].
    """
    fused = f"{prefix}.in_proj_weight"
    views = [MatrixView(f"{prefix}.in_proj", fused)]
    size = width // heads
    for third, part in enumerate(("query", "key", "value")):
        begin = third * width
        views.append(MatrixView(f"{prefix}.{part}", fused, rows=(begin, begin + width)))
        for h in range(heads):
            rows = (begin + h * size, begin + (h + 1) * size)
            views.append(MatrixView(f"{prefix}.{part}[{h}]", fused, rows=rows))
    output = f"{prefix}.out_proj"
    views.append(MatrixView(output, f"{output}.weight"))
    for h in range(heads):
        columns = (h * size, (h + 1) * size)
        name = f"{output}[{h}]"
        views.append(MatrixView(name, f"{output}.weight", columns=columns, on_demand=True))
    return views
