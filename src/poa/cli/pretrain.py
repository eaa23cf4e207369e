"""The commands that train and extract, from ``poa pretrain`` to ``poa demo``, and ``poa recipes``."""

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.table import Table

from poa.cli.evaluate import SEVERAL, OptionalSources, Switch, say
from poa.cli.plan import Flags, planned, show_planned
from poa.cli.show import show_sizes, show_untrained
from poa.config import resolve
from poa.config.network import ModelSettings
from poa.config.pretraining import Config
from poa.config.values import Step
from poa.errors import UserError
from poa.machine import launchers
from poa.text import note, plain_console, python_literal

# torch is imported when a command runs: `poa --help` and a mistyped flag shall not wait for it.

ModelFlags = Annotated[ModelSettings, Parameter(name="model", consume_multiple=1, negative_iterable=())]


def pretrain(
    *,
    flags: Flags = Config(),
    recipe: str | None = None,
    config: Path | None = None,
    hours: float | None = None,
    steps: int | None = None,
    resume: Switch = False,
    resume_if_begun: Switch = False,
    dry_run: Switch = False,
    print_config: Switch = False,
) -> None:
    """Pre-train an elastic network on a folder of images.

    Example: poa pretrain --data IMAGES --out runs/mine --hours 2

    Args:
        flags: Settings; they override --config, which overrides --recipe.
        recipe: Start from a shipped recipe; `poa recipes` lists them. Without recipe and file, all settings are planned
            for the images and the machine, as `poa plan` shows.
        config: Start from a YAML file of settings, which overrides --recipe and is overridden by flags.
        hours: How long the run shall take: epochs by the time of some steps.
        steps: How many steps the run shall have: epochs by the number of images.
        resume: Resume the run in --out exactly from its last checkpoint, with its own settings; also with more --epochs
            where its learning rate is constant.
        resume_if_begun: Resume the run in --out if it has begun, else start it. What Slurm has requeued or torchrun has
            restarted does so without.
        dry_run: Build everything, train two steps, estimate time and memory of the run, and write nothing.
        print_config: Print all settings that the run would have, and exit.
    """
    again = resume_if_begun or launchers.is_restarted()
    if resume and (hours is not None or steps is not None):
        raise UserError("A run that is resumed has its length already. Leave out --hours and --steps.")
    given = _given(flags, recipe, config, resume=resume or again)
    resolved = resolve.resolve(given, recipe=recipe, file=config, resume=resume or again)
    is_chosen = bool(flags.data) and recipe is None and config is None
    if (is_chosen or hours is not None or steps is not None) and not _goes_on(resolved, resume=resume, again=again):
        from poa import distributed
        from poa.models.opening import require_out

        if not (dry_run or print_config):
            require_out(resolved)  # before minutes of measuring
        with distributed.process_group(device=distributed.this_device(resolved.device, float64=False)):
            made = planned(given, recipe, config, hours, steps)
            show_planned(made, dry_run=dry_run, print_config=print_config)
            if not (dry_run or print_config):
                _train(made.config, resume=False, plan=made.text())
        return
    if print_config:
        print(resolve.to_yaml(resolved), end="")
        return
    resume = _goes_on(resolved, resume=resume, again=again)
    if not dry_run:
        _train(resolved, resume=resume)
    elif launchers.is_first():
        from poa.pretraining.dry_run import dry_run as forecast
        from poa.pretraining.launch import placed

        for line in forecast(placed(resolved), resume=resume, console=plain_console(stderr=True)).lines():
            say(line)


def _given(flags: Config, recipe: str | None, file: Path | None, *, resume: bool) -> dict[str, Any]:
    """The flags, with the network of the weights that the run starts from where none is named."""
    given = flags.model_dump(exclude_unset=True)
    if "init" not in given and (file is None or "init" not in resolve.read_yaml(file)):
        return given
    from poa.models.weights import with_network

    return dict(with_network(given, recipe=recipe, file=file, resume=resume))


def _goes_on(config: Config, *, resume: bool, again: bool) -> bool:
    from poa.pretraining.launch import goes_on

    return goes_on(config, resume=resume, again=again)


def _train(config: Config, *, resume: bool, plan: str = "") -> None:
    """Pre-train; a run that a scheduler has stopped ends the command with a status that says so."""
    from poa.pretraining import launch
    from poa.training.interrupt import StopSignal

    asked = StopSignal()
    launch.train(config, resume=resume, asked=asked, plan=plan)
    if asked.status:
        raise SystemExit(asked.status)


def sizes(
    *subjects: str,
    model: ModelFlags = ModelSettings(),
    recipe: str | None = None,
    image_size: int | None = None,
    checkpoint: Step | None = None,
    out: Path | None = None,
    plot: Path | None = None,
    score: str | None = None,
    cost: Literal["parameters", "gmacs", "mb", "ms"] | None = None,
) -> None:
    """List sizes: parameters, FLOPs, how often they are trained, scores, and MB and ms where they were measured.

    Example: poa sizes runs/mine runs/other model-96x4 resnet18 --plot sizes.png

    Args:
        subjects: Folders of runs; extracted sizes or other folders that timm loads; timm names. One or several; none
            with --model or --recipe.
        model: The network before any run, as in `poa pretrain`.
        recipe: The network of a shipped recipe; --model flags override it.
        image_size: Side of the images in pixels, for FLOPs; with --model or --recipe.
        checkpoint: Step of the checkpoint whose scores are shown as the run's, or `best`; the newest by default.
        out: Also write the table to this .csv or .json file.
        plot: Also draw all sizes to this PNG file: a score against what sizes cost.
        score: The score that comes first, and that is drawn; k-NN by default.
        cost: What sizes are drawn against; parameters by default.
    """
    given = model.model_dump(exclude_unset=True)
    if bool(subjects) == bool(given or recipe or image_size):
        raise UserError(
            "Give either the folder of a run, or --model NAME (or --recipe NAME) to see the sizes before any run."
        )
    if not subjects and (plot or score):
        raise UserError("Sizes have scores after a run. Leave out --plot and --score, or give the folder of a run.")
    if cost and not plot:
        raise UserError("--cost is for the chart. Add --plot FILE.png, or leave out --cost.")
    if not subjects:
        views = {"num_locals": 0} | ({} if image_size is None else {"global_size": image_size})
        show_untrained(resolve.resolve({"model": given, "views": views}, recipe=recipe), out=out)
        return
    from poa.choice.subjects import overview
    from poa.evaluation.rows import headline
    from poa.plots.tables import write

    shown = overview(subjects, checkpoint=checkpoint)
    names = headline(shown.rows)
    if score is not None:
        names = [score, *(name for name in names if name != score)]
    if out is not None:
        write(shown.rows, out)
    show_sizes(shown.rows, names, notes=shown.notes, all_in=out)
    if plot is not None:
        from poa.plots.sizes import accuracy_plot

        setup = " ".join(shown.notes) if cost == "ms" else ""
        accuracy_plot(shown.rows, out=plot, title=shown.heading, score=score, cost=cost or "parameters", note=setup)
        say(f"Chart: {plot}")


def extract(
    run: Path | None = None,
    /,
    *,
    size: Annotated[list[str], SEVERAL],
    out: Path | None = None,
    checkpoint: Step | None = None,
    overwrite: Switch = False,
    licence: Annotated[str, Parameter(show_default=False)] = "unknown",
    push_to_hub: str | None = None,
    weights: Annotated[str | None, Parameter(name="--from")] = None,
    model: ModelFlags = ModelSettings(),
    image_size: int | None = None,
) -> None:
    """Write sizes as models that timm and transformers load, each checked against the network that was trained.

    Example: poa extract runs/mine --size 64x3 96x4

    A size that is there already, with the same weights, is kept: a command that was stopped can be run again.

    Args:
        run: Folder of the run; leave it out with --from.
        size: One or more sizes, such as 96x4.
        out: Folder to write (one size); RUN/models/SIZE by default, models/NAME/SIZE with --from.
        checkpoint: Step of the checkpoint to use, or `best`; the newest by default.
        overwrite: Replace another model in that folder, or the card of the same one.
        licence: Licence of the weights, for the model card, such as apache-2.0.
        push_to_hub: Upload the folder to the Hugging Face hub under this name, such as me/my-model; of several sizes to
            NAME-SIZE each. New repositories are private.
        weights: Cut sizes out of trained weights without any training: a folder that timm loads, a timm name or a file.
        model: With --from, the network and its sizes, as in `poa pretrain`.
        image_size: With --from, side of the images in pixels; that of the weights by default.
    """
    given = model.model_dump(exclude_unset=True)
    if (run is None) == (weights is None):
        raise UserError("Give either the folder of a run, or --from WEIGHTS to cut sizes without any training.")
    if run is not None and (given or image_size):
        raise UserError("--model and --image-size go with --from: a run knows its network. Leave them out.")
    if weights is not None and checkpoint is not None:
        raise UserError("--checkpoint names a step of a run, and --from takes no run. Leave out --checkpoint.")
    if out is not None and len(size) > 1:
        default = f"{run}/models/SIZE" if run is not None else "models/NAME/SIZE"
        raise UserError(f"--out takes one size, got {len(size)}. Leave it out to write each to {default}.")
    from poa.models.cut import COST, CutWeights
    from poa.models.hub import upload
    from poa.models.run import Run, load

    source: Run | CutWeights
    if weights is not None:
        source = CutWeights(weights, model=given, image_size=image_size)
        note(plain_console(stderr=True), COST)
    elif run is not None:
        source = load(run, checkpoint=checkpoint)
    for name in size:
        folder = source.extract(name, out=out, overwrite=overwrite, licence=licence)
        say(f"{folder}: timm.create_model({python_literal(f'local-dir:{folder}')}, pretrained=True)")
        if push_to_hub is not None:
            say(f"Uploaded: {upload(folder, push_to_hub if len(size) == 1 else f'{push_to_hub}-{name}')}")


def polish(
    run: Path,
    /,
    *,
    size: str,
    epochs: int | None = None,
    data: OptionalSources = None,
    out: Path | None = None,
    checkpoint: Step | None = None,
) -> None:
    """Train one size of a run a little longer, with the run's intact network as frozen teacher.

    Example: poa polish runs/mine --size 96x4. It makes a run of one size; the same command resumes it after a stop.

    Args:
        run: Folder of the run.
        size: Such as 96x4.
        epochs: Passes over the images; a fifth of the run's by default.
        data: Images; those of the run by default.
        out: Folder of the new run, RUN/polished/SIZE by default.
        checkpoint: Step of the run's checkpoint to use, or `best`; the newest by default.
    """
    from poa.experiments.polish import polish_settings
    from poa.models.opening import is_begun
    from poa.models.run import load

    if epochs is not None and epochs < 1:
        raise UserError(f"--epochs must be at least 1, got {epochs}.")
    settings = polish_settings(load(run, checkpoint=checkpoint), size, epochs=epochs, data=data, out=out)
    _train(settings, resume=is_begun(Path(settings.out)))


def demo(*, model: str = "vit", method: str = "poa", out: Path | None = None, epochs: int | None = None) -> None:
    """Try everything on embedded handwritten digits: pre-train, score every size, extract three. Takes minutes.

    Example: poa demo --model convnext

    Args:
        model: Family of the network: vit, swin, resnet or convnext.
        method: poa, or a slimmable ResNet by slimclr-mocov2, slimclr-mocov3 or slimclr-simclr.
        out: Folder of the run, runs/demo by default (runs/demo-swin with another family); an interrupted demo resumes.
        epochs: Passes over the digits; fewer take less time and give lower scores.
    """
    from poa.experiments.demo import demo as run

    marks = [mark for mark, usual in ((model, "vit"), (method, "poa")) if mark != usual]
    folder = out or Path("runs", "-".join(["demo", *marks]))
    run(folder, console=plain_console(), model=model, method=method, epochs=epochs)


def recipes(name: str | None = None, /) -> None:
    """List the shipped recipes and what they are for, or show one.

    Example: poa recipes vit-96

    Args:
        name: Show this one: its reasons, and all settings that it states.
    """
    if name is not None:
        print(resolve.described(name), end="")
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    for name in resolve.recipes():
        table.add_row(name, resolve.recipe_summary(name))
    plain_console().print(table)
