"""Which couplings and matrices of a model a `Measure` wants, and what others wait for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from orchestrator.measure import Measure
from spectral.views import Coupling, MatrixView


def ends(coupling: Coupling) -> tuple[str, str]:
    """The names of the two views that meet."""
    return coupling.first.view, coupling.second.view


def wanted(measure: Measure, coupling: Coupling) -> bool:
    """Whether a coupling is measured if the views at both of its ends are chosen."""
    return "alignment" in measure.groups and not switches(measure, coupling)


def measured_views(
    measure: Measure, views: Iterable[MatrixView], couplings: Iterable[Coupling]
) -> list[MatrixView]:
    """The views that are measured beside these couplings.

    All that `measure` chooses, but of those on demand only what a coupling has at an end.
    """
    met = {name for coupling in couplings for name in ends(coupling)}
    chosen = (view for view in views if measure.chooses(view.name))
    return [view for view in chosen if not view.on_demand or view.name in met]


def waiting(
    measure: Measure, views: Iterable[MatrixView], declared: Sequence[Coupling]
) -> dict[str, str]:
    """Views on demand that are not measured for want of a coupling -> what would change that.

    Views that no pattern of `measure` chooses are among them only if choosing them is not enough.

    Args:
        measure: what is measured.
        views: of the model.
        declared: all its couplings, wanted or not.
    """
    found = {}
    for view in (view for view in views if view.on_demand):
        own = [coupling for coupling in declared if view.name in ends(coupling)]
        open_to_choice = [coupling for coupling in own if wanted(measure, coupling)]
        if open_to_choice:
            left = [[n for n in ends(c) if not measure.chooses(n)] for c in open_to_choice]
            if measure.chooses(view.name) and all(left):
                found[view.name] = f"choose {' and '.join(left[0])} too"
            continue
        missing = [] if "alignment" in measure.groups else ["alignment to groups"]
        missing += [f"{name}: true" for name in (switches(measure, own[0]) if own else [])]
        advice = f"add {' and '.join(missing)}"
        found[view.name] = advice if own else "the task declares none of them"
    return found


def switches(measure: Measure, coupling: Coupling) -> list[str]:
    """The options that a coupling needs and `measure` does not have."""
    needed = {
        "residual": coupling.residual and not measure.residual,
        "heads": coupling.per_head and not measure.heads,
    }
    return [name for name, needs in needed.items() if needs]
