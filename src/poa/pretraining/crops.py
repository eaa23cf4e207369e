"""How the crops of each step of a run are made."""

from poa.config.channels import Values
from poa.config.own import own_function
from poa.config.pretraining import SELF_DISTILLED, Config, ViewSettings
from poa.data.loader import Cropping, CropSchedule
from poa.data.masks import Masking
from poa.errors import UserError
from poa.families.base import Family, FourStages
from poa.families.vit import ViT


def crops_of(config: Config, family: Family, *, steps_per_epoch: int) -> CropSchedule:
    """Smaller global crops in the first epochs, as in FastDINOv2 (arXiv 2507.03779), if so asked.

    Raises:
        UserError: Settings of the crops do not fit the network or the loss.
    """
    views = config.views
    if config.method not in (*SELF_DISTILLED, "own"):  # students of the others see whole crops, without masks too
        views = views.model_copy(update={"drop_patches": 0.0})
    views.check()
    if views.own:
        own_function(views.own, flag="--views.own")  # told here, before a worker needs it
    if views.drop_patches:
        _check_dropping(config, family)
    if config.losses.gram:
        _check_gram(config, family)
    family.check_image_size(views.first_size, setting="views.small-size")
    small = views.model_copy(update={"global_size": views.first_size})
    steps = round(views.small_epochs * steps_per_epoch)
    return CropSchedule(_cropping(views, family, config.values), _cropping(small, family, config.values), steps)


def _cropping(views: ViewSettings, family: Family, values: Values) -> Cropping:
    masking = Masking(
        grid=family.mask_grid(views.global_size),
        share=views.mask_share,
        ratio=views.mask_ratio,
        dropped=views.drop_patches,
    )
    return Cropping(views, masking, values)


def _check_dropping(config: Config, family: Family) -> None:
    """What is left out cannot be predicted, and only a ViT can leave anything out."""
    asked = f"--views.drop-patches {config.views.drop_patches:g}"
    if not isinstance(family, ViT):
        raise UserError(f"{asked} works with --model vit, got a {type(family).__name__}. Leave it out.")
    if config.losses.ibot:
        raise UserError(f"{asked} leaves no patches for the students to predict. Add --losses.ibot 0, or leave it out.")


def _check_gram(config: Config, family: Family) -> None:
    """A single patch is like nothing else."""
    asked, views = f"--losses.gram {config.losses.gram:g}", config.views
    if config.method not in SELF_DISTILLED:
        raise UserError(
            f"{asked} works with --method {' or '.join(SELF_DISTILLED)}, got {config.method}. Leave it out."
        )
    side, flag = views.first_size, f"--views.{'small' if views.small_epochs else 'global'}-size"
    if family.mask_grid(side) < (3 if isinstance(family, FourStages) else 2):  # each cell of a last map counts twice
        raise UserError(
            f"{asked} compares the patches of a crop with each other, and a {type(family).__name__} makes one patch of "
            f"a crop of {side} pixels. Raise {flag}, or leave it out."
        )
