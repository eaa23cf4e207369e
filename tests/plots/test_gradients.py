from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes

from poa.errors import UserError
from poa.plots.gradients import gradient_plot


def rows(*, with_values: bool) -> list[dict[str, Any]]:
    values = {"gradient_first": 4.0, "gradient_second": 1.0} if with_values else {}
    gradients = {"gradient/16x1": 2.0, "gradient/8x1": 4.0, "gradient_rest/8x1": 0.5}
    return [{"step": step, **gradients, **values} for step in (1, 2)]


@pytest.mark.parametrize("with_values", [True, False])
def test_what_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_values: bool) -> None:
    """Runs of older versions did not write singular values down; the rest is drawn all the same."""
    drawn: list[tuple[list[float], list[float]]] = []
    plot = Axes.plot

    def noted(self: Axes, x: list[float], y: list[float], **options: Any) -> Any:
        drawn.append((x, y))
        return plot(self, x, y, **options)

    monkeypatch.setattr(Axes, "plot", noted)
    gradient_plot(rows(with_values=with_values), out=tmp_path / "gradients.png")
    assert (tmp_path / "gradients.png").read_bytes().startswith(b"\x89PNG")
    turns = ([1, 2], [0.25, 0.25]) if with_values else ([], [])
    assert drawn == [([1, 2], [0.5, 0.5]), ([1, 2], [0.5, 0.5]), turns]


def test_a_run_without_gradients(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did not measure its gradients"):
        gradient_plot([{"step": 1}], out=tmp_path / "gradients.png")
