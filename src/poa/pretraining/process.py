"""A pre-training in this process, from its settings to its end: images, networks, a folder, and the loop."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from rich.console import Console

from poa import distributed
from poa.config.channels import USUAL
from poa.config.pretraining import Config
from poa.data.index import ImageIndex
from poa.data.loader import read_or_none, why_bad
from poa.data.views import RawViews
from poa.errors import UserError, counted
from poa.features.images import note_darkness, open_images, tried
from poa.files import whole_file
from poa.machine.devices import found, told
from poa.machine.launchers import requeue
from poa.models import init, opening, registry
from poa.models import run as runs
from poa.models.run import Paths, Run
from poa.pretraining.advice import warnings_of
from poa.pretraining.bad import most_bad
from poa.pretraining.build import Parts, assemble, workers_of
from poa.pretraining.channels import with_channels
from poa.pretraining.logger import Logger
from poa.pretraining.loop import train_steps
from poa.pretraining.observers import NO_CALLBACKS, Callbacks
from poa.pretraining.resume import change_length, restore
from poa.pretraining.step import step_batches
from poa.text import note, plain_console, tell
from poa.training.checkpoint import latest_checkpoint
from poa.training.health import NonFinite, explained_memory
from poa.training.interrupt import StopSignal

PLAN = "plan.txt"
"""In the folder of a run that was planned: why its settings are as they are."""


@explained_memory()
def train(
    config: Config,
    *,
    resume: bool = False,
    console: Console | None = None,
    asked: StopSignal | None = None,
    plan: str = "",
    callbacks: Callbacks = NO_CALLBACKS,
) -> Run:
    """Pre-train, on this process and the others it was launched with, to the end or until asked to stop.

    Progress is shown on standard error unless another console is given. ``asked`` tells afterwards whether the run was
    stopped; a job of Slurm that was sent SIGUSR1 has then asked for another start. The text of a plan is written to a
    new run.

    Raises:
        UserError: A setting, images, folder or checkpoint are invalid, a loss is not finite, or a callback fails.
    """
    asked = asked or StopSignal()
    config, device = registry.explicit(config), distributed.this_device(config.device, float64=False)
    with distributed.process_group(device=device), ExitStack() as stack:
        if config.devices is None:
            config = config.model_copy(update={"devices": distributed.world_size()})
        console = console or plain_console(stderr=True, quiet=not distributed.is_main())
        if distributed.is_main():
            opening.check(config, resume=resume)
            if resume:
                stack.enter_context(opening.writing(config))
        distributed.barrier()  # no checkpoint is looked for while another process may still write one
        index, config = find_images(config, console)
        paths = Paths(Path(config.out))
        fresh = opening.begins(config, resume=resume)
        parts = assemble(config, index, device=device, fresh=fresh)
        start = 0 if fresh else restore(parts, config, index, console, processes=distributed.world_size())
        batches = _batches(parts, config, index, start=start)  # before a folder is made: it may refuse
        logger = Logger(config, index, parts, paths, start=start, console=console, callbacks=callbacks)
        distributed.barrier()  # all have read from which checkpoint they go on
        initial = None if parts.report is None else distributed.whole_state(parts.method.student.backbone.state_dict())
        if distributed.is_main():
            if not resume:  # last: a folder is only left behind where a run has begun
                stack.enter_context(opening.writing(config))
                opening.create(config)
                _write_plan(plan, paths.folder / PLAN)
            elif sentence := change_length(config, done=start):
                note(console, sentence)
            if initial is not None:
                init.write(initial, paths.initial)
        distributed.barrier()
        show_start(parts, config, console)
        for sentence in warnings_of(config, num_images=len(index)):
            note(console, sentence)
        with logger, asked, _advised(paths, is_low=parts.dtype.itemsize < 4):
            logger.finish(train_steps(parts, config, index, batches, logger, start=start, asked=asked))
            if asked.is_to_be_requeued and distributed.is_main():
                tell(console, requeue())
            distributed.barrier()  # Slurm may end all processes once one has ended
    return runs.load(config.out)


def find_images(config: Config, console: Console) -> tuple[ImageIndex, Config]:
    """Index the images, decode some of them before hours are spent, and complete what is said of their channels.

    Raises:
        UserError: There are no images, or most of those tried cannot be read, or labelled ones are lacking.
    """
    require_data(config)
    if config.monitor.patience and not config.monitor.data:
        raise UserError("--monitor.patience needs k-NN scores. Add --monitor.data LABELLED, or leave it out.")
    index = open_images(config.data, limit=config.limit, console=console)
    if sentence := _try_some(index, config):
        note(console, sentence)
    if config.values == USUAL:
        note_darkness(index, console=console)
    return index, with_channels(config, index, console)


def require_data(config: Config) -> None:
    """Refuse settings that name no images."""
    if not config.data:
        raise UserError("--data is required: a folder of images (or a list, a zip or tar, or `digits`).")


def show_start(parts: Parts, config: Config, console: Console) -> None:
    """Show the devices, how trained weights were loaded, and a warning of memory."""
    name = torch.cuda.get_device_name(parts.device) if parts.device.type == "cuda" else ""
    processes, local = distributed.world_size() if distributed.is_launched() else config.processes, config.devices or 1
    on = told(parts.device.type, name, found(), local=local, processes=processes, batch_size=config.batch_size)
    if on is not None:
        tell(console, on)
    if parts.warning is not None:
        note(console, parts.warning)
    for line in parts.report.lines() if parts.report is not None else ():
        tell(console, line, soft_wrap=not console.is_terminal)


def _try_some(index: ImageIndex, config: Config) -> str | None:
    """Decode some images; returns a sentence on those that cannot be read.

    Raises:
        UserError: Most of them cannot be read, or more than a run allows.
    """
    probe = tried(index)
    bad = [i for i in probe if read_or_none(index, i, config.values) is None]
    if not bad:
        return None
    share = f"{config.max_bad_share:.1%}"
    found = (
        f"{len(bad)} of {counted(len(probe), 'image')} tried in {index.source} cannot be read, such as "
        f"{index.name(bad[0])} ({why_bad(index, bad[0], config.values)})"
    )
    if len(bad) > len(probe) / 2:
        raise UserError(f"{found}. Fix the images, or give another --data.")
    if len(bad) > most_bad(len(index), share=config.max_bad_share):
        raise UserError(
            f"{found}, more than the allowed share of {share}. Fix or remove them, or raise --max-bad-share."
        )
    return f"{found}. Such images are skipped; the run stops if they are more than {share} of all."


def _batches(parts: Parts, config: Config, index: ImageIndex, *, start: int) -> Iterator[list[RawViews]]:
    return step_batches(
        parts,
        index,
        batch_size=config.batch_size,
        start_step=start,
        num_steps=config.epochs * parts.steps_per_epoch - start,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        micro_batches=config.accumulate,
        workers=workers_of(config),
    )


def _write_plan(plan: str, path: Path) -> None:
    if plan:
        with whole_file(path) as temporary:
            temporary.write_text(plan, encoding="utf-8")


@contextmanager
def _advised(paths: Paths, *, is_low: bool) -> Iterator[None]:
    """Say what to do about numbers that are not finite, by the precision and by whether there is a checkpoint."""
    try:
        yield
    except NonFinite as error:
        last = latest_checkpoint(paths.checkpoints)
        lower = "with a lower --lr" + (" or --precision fp32" if is_low and last is None else "")
        advice = f"No checkpoint was saved before: delete {paths.folder} and start again {lower}."
        if last is not None:
            first = "Resume with --resume --precision fp32, or start" if is_low else "Start"
            advice = f"The last checkpoint, {last}, is kept. {first} a new run in another --out {lower}."
        raise type(error)(f"{error} {advice}") from None
