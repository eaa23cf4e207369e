"""What to tell of a planned run that is allowed but rarely right."""

from collections.abc import Iterator

from poa.config.pretraining import Config
from poa.planning.facts import ImageFacts

FEW_STEPS = 300
"""Fewer hardly train any network."""
FAR = 4
"""Times as large as their crops, images lose what is small in them."""


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
