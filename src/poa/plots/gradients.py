"""Charts of gradient norms: which widths dominate a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure

from poa.errors import UserError
from poa.plots.figure import INK, legend, save, style


def gradient_plot(metrics: Sequence[Mapping[str, Any]], *, out: Path) -> None:
    """Draw the ratios that tell which widths dominate, a line for each width, from the lines of a ``metrics.jsonl``.

    Left: mean gradient norm of all weights divided by that of a width's weights. Middle: mean norm of the weights that
    a width does not use divided by that of those it uses; below 1 the width dominates though it has the fewest weights.
    Right: second singular value of the gradient of the heads' last matrix divided by the first; near 1 the gradients
    of the widths point in different directions.
    """
    rows = [row for row in metrics if any(name.startswith("gradient_rest/") for name in row)]
    if not rows:
        raise UserError(
            "This run did not measure its gradients. Start one with --monitor.gradients-every 100, for example; "
            "a run can also be resumed with it."
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
    turned = [row for row in rows if "gradient_first" in row]  # older versions did not measure it
    turns = [row["gradient_second"] / row["gradient_first"] for row in turned]
    right.plot([row["step"] for row in turned], turns, color=INK, linewidth=1.2)
    style(left, title="gradient norm: all weights / those of a width", x="step")
    style(middle, title="the other weights / those of a width", x="step")
    style(right, title="last matrix: second / first singular value", x="step")
    right.set_ylim(0, 1)
    middle.axhline(1.0, color=INK, linewidth=0.8, linestyle=":")
    legend(figure, columns=6)
    save(figure, out)
