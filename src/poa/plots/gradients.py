"""How strongly each width pulls at the shared weights, step by step, as a picture (SlimCLR, arXiv 2209.15525)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from poa.errors import UserError
from poa.files import whole_file

_INK, _GRID, _DPI = "#222222", "#e9e9e9", 200


def gradient_plot(metrics: Sequence[Mapping[str, Any]], *, out: Path) -> None:
    """Draw the ratios that tell which widths lead, a line each width.

    First: mean norm over all weights by that over a width's part. Second: mean norm over what a width does not use by
    that over what it uses; below 1 the width leads though it owns the fewest weights. Third: of the gradient of the
    heads' last matrix, the second singular value by the first; near 1 widths pull different ways.

    Args:
        metrics: Lines of a ``metrics.jsonl``.
        out: PNG file to write.

    Raises:
        UserError: Gradients were not looked at.
    """
    rows = [row for row in metrics if any(name.startswith("gradient_rest/") for name in row)]
    if not rows:
        raise UserError(
            "This run has not looked at its gradients. Start one with --monitor.gradients-every 100, for example; "
            "a run may also go on with it."
        )
    sizes = [name.removeprefix("gradient_rest/") for name in rows[0] if name.startswith("gradient_rest/")]
    full = next(name for name in rows[0] if name.startswith("gradient/"))
    figure = Figure(figsize=(12.5, 3.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    steps = [row["step"] for row in rows]
    for number, size in enumerate(sizes):
        colour = colormaps["viridis"](number / max(len(sizes), 2))
        left.plot(steps, [row[full] / row[f"gradient/{size}"] for row in rows], color=colour, linewidth=1.2, label=size)
        middle.plot(steps, [row[f"gradient_rest/{size}"] for row in rows], color=colour, linewidth=1.2)
    turned = [row for row in rows if "gradient_first" in row]  # runs of older versions know nothing of it
    turns = [row["gradient_second"] / row["gradient_first"] for row in turned]
    right.plot([row["step"] for row in turned], turns, color=_INK, linewidth=1.2)
    _dress(left, "gradient norm: all weights / those of a width")
    _dress(middle, "the other weights / those of a width")
    _dress(right, "last matrix: second / first singular value")
    right.set_ylim(0, 1)
    middle.axhline(1.0, color=_INK, linewidth=0.8, linestyle=":")
    figure.legend(loc="outside lower left", ncols=6, frameon=False, fontsize=9, labelcolor=_INK)
    with whole_file(out) as temporary:
        figure.savefig(temporary, dpi=_DPI, format="png")


def _dress(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, color=_INK)
    axes.set_xlabel("step", color=_INK)
    axes.grid(axis="y", color=_GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_INK, length=0)
