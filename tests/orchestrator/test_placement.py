"""How many trials fit a machine or a cluster."""

from __future__ import annotations

import pytest

from orchestrator.errors import SweepError
from orchestrator.placement import place
from orchestrator.sweep import Resources

BIG = {"CPU": 8.0, "GPU": 2.0, "v100": 2.0}
SMALL = {"CPU": 3.0}


@pytest.mark.parametrize(
    ("resources", "nodes", "workers"),
    [
        (Resources(cpus=1, gpus=0), [SMALL], 3),
        (Resources(cpus=2, gpus=0), [SMALL, SMALL], 2),  # never half on one node, half on another
        (Resources(cpus=1, gpus="auto"), [BIG, SMALL], 2),  # one GPU each, if there is any
        (Resources(cpus=1, gpus="auto"), [SMALL], 3),
        (Resources(cpus=1, gpus=0.5), [BIG], 4),
        (Resources(cpus=1, gpus=0.4), [BIG], 4),  # a share never spans two GPUs: 2 each, not 5
        (Resources(cpus=1, gpus=2.0), [BIG, BIG], 2),  # several GPUs are one bundle of one node
        (Resources(cpus=1, gpus=0, custom=(("v100", 1.0),)), [BIG, SMALL], 2),
        (Resources(cpus=4, gpus=0.25), [BIG], 2),  # the CPUs are what is scarce
    ],
)
def test_as_many_workers_as_fit_each_node(
    resources: Resources, nodes: list[dict[str, float]], workers: int
) -> None:
    """All that a trial asks for lies on one node; the scarcest resource decides."""
    assert place(resources, nodes, source="s.yaml", cluster=True).workers == workers


def test_a_limit_holds_for_now_and_for_later() -> None:
    """`--workers N`, or fewer trials than places: the pool never grows beyond it."""
    placed = place(Resources(gpus=0), [BIG], source="s.yaml", limit=3, cluster=True)

    assert (placed.workers, placed.most) == (3, 3)


def test_a_machine_does_not_grow_and_a_cluster_may() -> None:
    """What does not fit this machine is refused; a cluster's autoscaler may bring it."""
    wanted = Resources(cpus=16, gpus=4.0, custom=(("tpu", 1.0),))

    with pytest.raises(SweepError) as caught:
        place(wanted, [BIG], source="s.yaml")
    placed = place(wanted, [BIG], source="s.yaml", cluster=True)

    assert str(caught.value) == (
        "s.yaml: 3 problems\n"
        "  resources.cpus: a trial asks for 16 CPUs, this machine has 8\n"
        "  resources.gpus: a trial asks for 4 GPUs, this machine has 2\n"
        "  resources.custom.tpu: a trial asks for 1, this machine has 0; only a cluster whose "
        "owner has named it has any"
    )
    assert placed.workers == 1
    assert placed.describe() == "16 CPUs, 4 GPUs and 1 tpu"
