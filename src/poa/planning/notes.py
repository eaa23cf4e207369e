"""What to tell of a planned run that is allowed but rarely right."""

from collections.abc import Iterator

from poa.config.pretraining import SELF_DISTILLED, Config
from poa.planning.expectation import TITLES
from poa.planning.facts import ImageFacts

FEW_STEPS = 300
"""Fewer hardly train any network."""
FAR = 4
"""Times as large as their crops, images lose what is small in them."""
BETTER_TAUGHT = ("convnext", "resnet")
"""Families that learn most from a ViT (ADR 0049)."""


def notes_of(config: Config, images: ImageFacts, *, num_steps: int, chosen_crops: bool) -> Iterator[str]:
    """Sentences; what settings alone say, ``warnings_of`` tells, and of crops that a plan chose its reasons."""
    if num_steps < FEW_STEPS:
        yield (
            f"{num_steps} steps are few: networks hardly learn anything in fewer than {FEW_STEPS}. Give the run more "
            "time (--hours, --steps, --epochs), or lower --batch-size or --views.global-size."
        )
    crop = config.views.global_size
    if crop > images.side and not chosen_crops:
        yield (
            f"Crops of {crop} pixels are larger than the images, whose shorter side is {images.side} pixels: they are "
            "enlarged, which costs time and adds nothing. Lower --views.global-size where the network allows it."
        )
    if images.side >= FAR * crop and not chosen_crops:
        yield (
            f"The images' shorter side is {images.side} pixels, {images.side / crop:.0f} times that of the crops: what "
            "is small in them is lost. Raise --views.global-size where time allows it, or cut the images."
        )
    learns_alone = config.method in SELF_DISTILLED and not config.distill.teacher and config.init is None
    if learns_alone and config.model.name in BETTER_TAUGHT and config.losses.kind == "coding-rate":
        yield (
            f"With no more time altogether, a {TITLES[config.model.name]} learned more in our runs from a ViT that was "
            "trained first: give a third of the hours to --recipe vit-small-data, and the rest to this network with "
            "--method distill --distill.teacher RUN."
        )
