"""Which settings have no effect on a run, since its method or its kind of loss does not use them. Imports no torch."""

from collections.abc import Collection, Iterator
from typing import Any

from poa.config.pretraining import ELASTIC, SELF_DISTILLED, SLIMMABLE, Config
from poa.config.values import flag, names_of_settings


def without_effect(config: Config, given: Collection[str]) -> str | None:
    """A sentence on settings without an effect among those that are given, by dotted name; None if there are none.

    A method from outside of this package gets all settings. Values that are those by default say nothing.
    """
    usual = Config()
    prefixes = () if config.method == "own" else tuple(_unused(config))
    names = (name for name in names_of_settings(Config) if name in given and name.startswith(prefixes))
    found = [name for name in names if _value(config, name) != _value(usual, name)]
    if not found:
        return None
    kind = f" and --losses.kind {config.losses.kind}" if config.method in SELF_DISTILLED else ""
    flags = ", ".join(flag(name.split(".")) for name in found)
    return f"Without effect with --method {config.method}{kind}: {flags}. Leave out what has none."


_OF_PROTOTYPES = ("losses.student_temperature", "losses.teacher_temperature", "losses.centering")


def _unused(config: Config) -> Iterator[str]:
    """How names of settings begin that nothing of this run reads."""
    method, kind, heads = config.method, config.losses.kind, config.heads
    alone, no_prototypes = method not in SELF_DISTILLED, ("heads.prototypes", "heads.memory")
    rules: dict[tuple[str, ...], bool] = {
        ("distill.",): method not in ("distill", "seed") and (alone or not config.distill.teacher),
        ("distill.weight",): alone,
        ("distill.queue", "distill.student_temperature", "distill.teacher_temperature"): method != "seed",
        ("distill.patch_weight", "distill.smooth_l1"): method == "seed",
        ("slim.",): method not in SLIMMABLE,
        ("slim.head_norm",): method != "slimclr-mocov2",
        ("elastic_samples", "sampling", "same_sizes_on_all_ranks"): method not in ELASTIC or method in SLIMMABLE,
        ("losses.intact_share",): method not in ("poa", "distill"),
        ("heads.layers",): alone,
        ("heads.hidden",): method != "distill" and (alone or (heads.layers == 1 and not config.distill.teacher)),
        (*no_prototypes, "heads.bottleneck", "views.mask_", "losses.ibot", "losses.kind", "losses.variant"): alone,
        ("losses.koleo", "losses.gram", "losses.rate", "losses.distortion", *_OF_PROTOTYPES): alone,
        ("optimizer.freeze_last_layer_epochs",): alone or kind == "coding-rate",
        ("optimizer.teacher_momentum",): alone and not method.startswith("slimclr-moco"),
        (*no_prototypes, *_OF_PROTOTYPES): kind == "coding-rate",
        ("losses.rate", "losses.distortion"): kind == "prototypes",
        ("losses.koleo_over_ranks",): config.losses.koleo == 0,
        ("views.drop_patches",): alone,
        ("views.local_",): config.views.num_locals == 0,
        ("views.small_size",): config.views.small_epochs == 0,
    }
    return (name for names, is_unused in rules.items() if is_unused for name in names)


def _value(config: Config, name: str) -> Any:
    section, _, key = name.rpartition(".")
    return getattr(getattr(config, section) if section else config, key)
