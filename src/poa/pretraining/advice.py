"""What a user should know of settings that are allowed but rarely right."""

import math
from collections.abc import Iterator

from poa.config.pretraining import SELF_DISTILLED, SLIMMABLE, Config
from poa.errors import counted
from poa.pretraining.schedule import peak_lr


def warnings_of(config: Config, *, num_images: int) -> list[str]:
    """Sentences about settings that are allowed but rarely right for so many epochs and images."""
    endless = list(_endless(config))
    short = f"With --epochs {config.epochs} {'; '.join(endless)}. Lower the settings in brackets, or raise --epochs."
    peak, final = peak_lr(config), config.optimizer.final_lr
    rising = f"The learning rate rises to the end, from {peak:.3g} to {final:.3g}. Lower --optimizer.final-lr."
    found = [*([short] if endless else []), *([rising] if final > peak else [])]
    return [*found, *_about_images(config, num_images=num_images)]


def _endless(config: Config) -> Iterator[str]:
    """What is counted in epochs from the start and does not end within the run."""
    losses, optimizer, epochs = config.losses, config.optimizer, config.epochs
    start, end = losses.teacher_temperature
    if optimizer.warmup_epochs >= epochs:
        yield f"the learning rate rises to the end (--optimizer.warmup-epochs {optimizer.warmup_epochs:g})"
    if optimizer.backbone_warmup_epochs >= epochs:
        rising = f"--optimizer.backbone-warmup-epochs {optimizer.backbone_warmup_epochs:g}"
        yield f"the backbone's learning rate rises to the end ({rising})"
    if config.views.small_epochs >= epochs:
        yield f"crops never have their full size (--views.small-epochs {config.views.small_epochs:g})"
    if config.method in SLIMMABLE and (config.slim.slow_start_epochs or 0) >= epochs:
        yield f"only the full width learns (--slim.slow-start-epochs {config.slim.slow_start_epochs:g})"
    if config.method not in SELF_DISTILLED:
        return
    if optimizer.freeze_last_layer_epochs >= epochs and losses.kind == "prototypes":
        yield f"prototypes never learn (--optimizer.freeze-last-layer-epochs {optimizer.freeze_last_layer_epochs:g})"
    if losses.teacher_temperature_epochs > epochs and start != end and losses.kind == "prototypes":
        ramp = f"--losses.teacher-temperature-epochs {losses.teacher_temperature_epochs:g}"
        yield f"the teacher's temperature does not reach {end:g} ({ramp})"
    if losses.ibot and losses.ibot_start_epoch >= epochs:
        yield f"no patches are ever masked (--losses.ibot-start-epoch {losses.ibot_start_epoch:g})"


def _about_images(config: Config, *, num_images: int) -> list[str]:
    queues = {"seed": ("--distill.queue", config.distill.queue), "slimclr-mocov2": ("--slim.queue", config.slim.queue)}
    if config.method in queues:
        flag, length = queues[config.method]
        repeated = (
            f"{flag} {length} is more than the number of images, so the queue holds images twice; lower it to at most"
        )
        return [f"{repeated} {num_images}."] if length > num_images else []
    if config.method not in SELF_DISTILLED or config.losses.kind != "prototypes":
        return []
    found = []
    most = max(config.heads.prototypes)
    # every image shows up in two global views; a prototype that never wins in an epoch is only noise in the targets
    if most > 2 * num_images:
        found.append(
            f"{most} prototypes are too many for {counted(num_images, 'image')}; set --heads.prototypes to at "
            f"most {2 ** int(math.log2(num_images))}, or start from a recipe for small data (`poa recipes`)."
        )
    per_pass = config.batch_size // config.accumulate
    if per_pass < 32 and config.losses.centering == "sinkhorn":
        found.append(
            f"Sinkhorn-Knopp sees only {counted(per_pass, 'image')} at a time; below 32 its targets are noisy."
        )
    if config.losses.koleo == 0:
        found.append("Without KoLeo (--losses.koleo 0) small runs can collapse while their loss looks normal.")
    return found


def cure_of_collapse(config: Config) -> str:
    """What to do once the features of a run have collapsed, by settings that have an effect on it."""
    kind = config.losses.kind if config.method in SELF_DISTILLED else ""
    cures = {
        "prototypes": "Raise --losses.koleo or --lr, or use fewer --heads.prototypes.",
        "coding-rate": "Lower --lr, or raise --optimizer.warmup-epochs or --losses.rate.",
    }
    return cures.get(kind, "Lower --lr, or raise --optimizer.warmup-epochs.")
