"""The command ``poa plan``, and the runs of ``poa pretrain`` that are planned."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from poa.cli.evaluate import say
from poa.config import resolve
from poa.config.pretraining import Config
from poa.text import names_of, plain_console, shell_word

if TYPE_CHECKING:
    from poa.planning.run_plan import RunPlan

Flags = Annotated[Config, Parameter(name="*", consume_multiple=1, negative_iterable=())]


def plan(
    *,
    flags: Flags = Config(),
    recipe: str | None = None,
    config: Path | None = None,
    hours: float | None = None,
    steps: int | None = None,
) -> None:
    """Plan a pre-training for your images and this machine: recipe, settings with reasons, speed, hours, memory, disk.

    Example: poa plan --data IMAGES --hours 2. Some steps are trained to measure them, and nothing is written.
    `poa pretrain` with the same flags and --out trains as planned.

    Args:
        flags: Settings, as in `poa pretrain`; they are kept as given.
        recipe: Plan only the length of a run of this recipe.
        config: Plan only the length of a run with the settings of this YAML file.
        hours: How long the run shall take.
        steps: How many steps the run shall have.
    """
    given = flags.model_dump(exclude_unset=True)
    made = planned(given, recipe, config, hours, steps)
    show_rows(made.rows(), plain_console())
    named = {"recipe": recipe, "config": config, "hours": hours, "steps": steps, "out": flags.out or "FOLDER"}
    words = [f" --{name} {shell_word(str(what))}" for name, what in named.items() if what is not None]
    others = ", and the other flags that you gave" if given.keys() - {"data", "out"} else ""
    images = " ".join(map(shell_word, names_of(flags.data)))
    say(f"To train as planned: poa pretrain --data {images}{''.join(words)}{others}")


def planned(
    given: dict[str, Any], recipe: str | None, config: Path | None, hours: float | None, steps: int | None
) -> "RunPlan":
    """The plan of a run."""
    from poa.planning.run_plan import make_plan

    return make_plan(given, recipe=recipe, file=config, hours=hours, steps=steps)


def show_planned(made: "RunPlan", *, dry_run: bool, print_config: bool) -> None:
    """Print the settings of a plan, or all of it: where a run follows, on standard error."""
    from poa import distributed

    if not distributed.is_main():
        return
    if print_config:
        print(resolve.to_yaml(made.config), end="")
    else:
        show_rows(made.rows(), plain_console(stderr=not dry_run))


def show_rows(rows: Sequence[tuple[str, str]], console: Console) -> None:
    """Print lines with their names, wrapped beside them, or below them where there is little room."""
    table = Table.grid(padding=(0, 2))
    table.add_column(max_width=max(12, console.width // 3), overflow="fold")
    table.add_column()
    for name, what in rows:
        table.add_row(name, what)
    console.print(table)
