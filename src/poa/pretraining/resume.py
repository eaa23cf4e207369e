"""With which settings, and on how many processes, a checkpoint was trained, and what other processes change."""

from collections.abc import Iterator, Mapping
from typing import Any

from poa import distributed
from poa.config.pretraining import SELF_DISTILLED, SLIMMABLE, Config
from poa.config.resolve import learned
from poa.models.registry import drop_path_of


def identity(config: Config) -> dict[str, Any]:
    """What a checkpoint says about its training; those of older versions do not have it."""
    return {"settings": learned(config), "processes": distributed.world_size()}


def changed_processes(state: Mapping[str, Any], config: Config, *, now: int) -> str | None:
    """A sentence on what changes where a run is resumed on another number of processes than it was trained on so far.

    Images, crops, masks, learning rates and targets depend on the global batch alone.
    """
    before: int = state.get("processes", now)
    effects = [] if before == now else list(_effects(config, before, now))
    if not effects:
        return None
    were, are = (f"{number} process{'es' if number > 1 else ''}" for number in (before, now))
    return (
        f"So far this run was trained with {were}, now it is resumed with {are}. This changes what is learned from now "
        f"on: {'; '.join(effects)}. Resume with {were} (--devices, --num-nodes) to avoid this."
    )


def _effects(config: Config, before: int, now: int) -> Iterator[str]:
    images, others = (config.batch_size // (config.accumulate * number) for number in (before, now))
    if config.method in ("poa", "distill") and not config.same_sizes_on_all_ranks:
        samples = config.elastic_samples
        yield f"each step trains {samples * now} of the sizes instead of {samples * before}, in another order"
    if config.method in SELF_DISTILLED and config.losses.koleo and not config.losses.koleo_over_ranks:
        yield f"KoLeo looks for nearest neighbours among {others} images instead of {images}"
    if config.method == "slimclr-mocov2":
        yield f"BatchNorm takes its statistics over {others} images instead of {images}"
    if config.method not in SLIMMABLE and drop_path_of(config.model):
        yield "drop path leaves out blocks of other images"
