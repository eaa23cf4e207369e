"""The command ``poa doctor``: what may be wrong with the images of a set."""

from pathlib import Path
from typing import Annotated

from poa.cli.evaluate import FLAGS, Switch, say
from poa.config.examination import Examination
from poa.config.values import Step
from poa.errors import UserError, counted
from poa.text import plain_console, shell_word

# torch is imported when a command runs: `poa --help` and a mistyped flag shall not wait for it.


def doctor(
    *data: str,
    out: Path | None = None,
    write_list: Path | None = None,
    settings: Annotated[Examination, FLAGS] = Examination(),
    model: str | None = None,
    size: str | None = None,
    checkpoint: Step | None = None,
    limit: int | None = None,
    workers: int | None = None,
    overwrite: Switch = False,
) -> None:
    """Find images that are damaged, duplicates, constant, tiny or odd, before a training. The images are only read.

    Example: poa doctor IMAGES --out report.html --write-list keep.txt

    Args:
        data: The images: a folder, a list of paths, an archive.
        out: Write the findings: FILE.html shows the first images of each kind, FILE.csv lists all.
        write_list: Write the images to keep as FILE.txt, FILE.csv or FILE.tsv, for --data of other commands.
        settings: What counts as a finding, and which images are left out of the list.
        model: Find near-duplicates by the features of a network, not by pixels: the folder of a run, a folder that timm
            loads, or a timm name.
        size: Which size of --model, such as 96x4.
        checkpoint: Step of the run's checkpoint to use, or `best`; the newest by default.
        limit: Examine only so many images, balanced over classes.
        workers: Processes that decode images; by default one for each core but one, none for few images.
        overwrite: Replace existing files.
    """
    from poa.examination.examine import Comparison, examine
    from poa.examination.summary import facts, findings_table, flags
    from poa.models.source import model_source

    if model is None and (size is not None or checkpoint is not None):
        raise UserError("--size and --checkpoint choose a network of --model. Add --model, or leave them out.")
    found = examine(
        data,
        settings,
        out=out,
        write_list=write_list,
        comparison=None if model is None else Comparison(model_source(model, checkpoint=checkpoint), size),
        limit=limit,
        workers=workers,
        overwrite=overwrite,
        console=plain_console(stderr=True),
    )
    say(f"{found.index.source}: {counted(len(found.index), 'image')}")
    plain_console().print(findings_table(found))
    for name, text in facts(found).items():
        say(f"{name}: {text}")
    if channels := flags(found):
        say(f"Channels, as flags of poa pretrain: {channels}")
    if out is not None:
        say(f"Report: {out}")
    if write_list is not None:
        left = len(found.index) - len(found.kept)
        say(f"List: {write_list} ({counted(len(found.kept), 'image')}, {left:,} left out)")
        say(f"Next: poa pretrain --data {shell_word(str(write_list))} {channels} --out RUN")
