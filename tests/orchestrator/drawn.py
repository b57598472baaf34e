"""What is drawn, read back from axes as numbers, never from pixels."""

import numpy as np
from matplotlib.collections import QuadMesh

from orchestrator import Results
from orchestrator.figures_kinds import makers
from orchestrator.report import material_of


def sheets_of(root):
    """The figures of a report before they are saved: name -> sheet."""
    made = (make() for make in makers(material_of(Results.open(root))))
    return {sheet.name: sheet for sheet in made if sheet is not None}


def heat_in(ax):
    """The numbers of a heat map (rows, steps); NaN where it is grey."""
    [mesh] = [c for c in ax.collections if isinstance(c, QuadMesh)]
    return np.ma.filled(mesh.get_array(), np.nan)


def lines_in(ax):
    """gid -> ydata of every line that stands for something."""
    return {line.get_gid(): line.get_ydata() for line in ax.lines if line.get_gid()}


def lines_of(ax):
    """gid -> (xdata, ydata) of every line."""
    return {
        line.get_gid(): (
            np.asarray(line.get_xdata()).tolist(),
            np.asarray(line.get_ydata()).tolist(),
        )
        for line in ax.lines
    }


def legend_of(holder):
    (legend,) = [holder.get_legend()] if hasattr(holder, "get_legend") else holder.legends
    return legend.get_title().get_text(), [text.get_text() for text in legend.get_texts()]
