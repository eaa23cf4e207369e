"""The commands ``poa measure`` and ``poa choose``: what networks take on this machine, and which size to ship."""

from typing import Annotated

from poa.cli.evaluate import FLAGS, Model, Names, OptionalSources, say
from poa.config.choice import Limits, MeasureSettings
from poa.config.values import Step
from poa.errors import UserError
from poa.text import plain_console, shell_word

# torch is imported when a command runs: `poa --help` and a mistyped flag shall not wait for it.

How = Annotated[MeasureSettings, FLAGS]


def measure(
    *model: Model,
    sizes: Names = ("all",),
    image_size: int | None = None,
    checkpoint: Step | None = None,
    how: How = MeasureSettings(),
) -> None:
    """Measure time, memory and file size of networks on this machine, all timed in turn.

    Example: poa measure runs/mine resnet18.a1_in1k --threads 2

    Args:
        model: Folders of runs; extracted sizes or other folders that timm loads; timm names. One or several.
        sizes: Of runs: names such as 96x4; all by default.
        image_size: Side of the images in pixels; by default the size that the network is made for.
        checkpoint: Step of the checkpoint to use, of runs, or `best`; the newest by default.
        how: Device, runtime, threads, batch and time.
    """
    from poa.choice.measure import measure_sources
    from poa.choice.measured import FOLDER
    from poa.choice.tables import UNITS, Row, interrupted, measurement_table
    from poa.models.source import model_source

    if not model:
        raise UserError("Name what to measure: the folder of a run, an extracted size, or a timm name.")
    sources = [model_source(name, image_size=image_size, checkpoint=checkpoint) for name in dict.fromkeys(model)]
    found = measure_sources(sources, how, sizes=sizes, console=plain_console(stderr=True))
    rows = [Row(each.source.name, name, measurement) for each in found for name, measurement in each.now.items()]
    plain_console().print(measurement_table(rows))
    for line in (*UNITS, *interrupted(row.measurement for row in rows)):
        say(line)
    for each in found:
        say(f"{each.source.name}: {each.before.setup}. Kept in {each.source.out / FOLDER}.")
        if each.rank_correlation is not None:
            say(f"Rank correlation with the times of {each.before.date[:16]} UTC: {each.rank_correlation:.2f}.")


def choose(
    run: str,
    /,
    *,
    limits: Annotated[Limits, FLAGS] = Limits(),
    score: str = "knn",
    checkpoint: Step | None = None,
    how: How = MeasureSettings(),
    train: OptionalSources = None,
    test: OptionalSources = None,
    limit: int | None = None,
    workers: int = 0,
) -> None:
    """Choose the size with the highest score within limits on time, file size or operations.

    Sizes that are not measured on this machine are measured. With --train and --test, sizes that are not scored are
    scored: of many, some first, then those that may be the best.

    Example: poa choose runs/mine --max-ms 5 --max-mb 10

    Args:
        run: Folder of the run.
        limits: What the size has to keep to.
        score: Name of the evaluation, such as knn or linear: the folder of its results in RUN/eval. Without labels,
            `parameters`: the largest size within the limits.
        checkpoint: Step of the run's checkpoint to use, or `best`; the newest by default.
        how: How sizes are measured.
        train: Labelled images to learn from, to score sizes that have no score.
        test: Labelled images to test on.
        limit: Use only so many of the --train images, balanced over classes.
        workers: Processes that decode images.
    """
    from poa.choice.budget import front
    from poa.choice.choose import choose as work
    from poa.choice.scores import labelled
    from poa.choice.tables import UNITS, choice_table, interrupted
    from poa.models.source import model_source

    images = labelled(train, test, limit, workers)
    source = model_source(run, checkpoint=checkpoint)
    found = work(source, limits, score=score, how=how, images=images, console=plain_console(stderr=True))
    say(str(found))
    shown = front(found.candidates)
    shown += [] if found.chosen in shown else [found.chosen]
    plain_console().print(choice_table(shown, found.chosen, score=found.score))
    say("* chosen. Shown are sizes that no other beats in score without being slower.")
    for line in (*found.notes(), *interrupted(each.measurement for each in shown), f"{found.setup}.", *UNITS):
        say(line)
    step = "" if checkpoint is None else f" --checkpoint {checkpoint}"
    say(f"Next: poa export {shell_word(source.name)} --size {found.chosen.name} --format onnx{step}")
