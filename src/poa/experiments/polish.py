"""Train one size of a run a little longer, with the run's intact network as frozen teacher."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from poa.config.pretraining import SLIMMABLE, Config
from poa.config.resolve import of_length
from poa.data.sources import Data
from poa.elastic.space import Size
from poa.errors import UserError
from poa.models.registry import only
from poa.models.run import Run
from poa.pretraining.schedule import peak_lr

EPOCHS_SHARE, LR_SHARE = 0.2, 0.25
"""Length and peak learning rate by default, as shares of the run's."""


def polish_settings(
    run: Run, size: str, *, epochs: int | None = None, data: Data | None = None, out: Path | None = None
) -> Config:
    """Settings of a run of one size that begins with the weights of that size, which are extracted if need be.

    Args:
        run: Whose size, and whose intact network is the teacher.
        size: Such as ``96x4``.
        epochs: Passes over the images; a fifth of the run's by default.
        data: Images; those of the run by default.
        out: Folder of the new run; ``polished/SIZE`` in that of the run by default.

    Raises:
        UserError: There is no such size, or it cannot be polished.
    """
    wanted, config = run.space.find(size), run.config
    if config.method in SLIMMABLE:
        raise UserError(
            f"{run.folder} is a run of {config.method}, and a slimmable ResNet cannot be polished. Fine-tune its sizes "
            "with `poa finetune`."
        )
    if wanted == run.space.intact:
        raise UserError(f"{wanted} is the largest size of {run.folder}, which is the teacher. Choose a smaller --size.")
    lasting = of_length(config, epochs or max(1, round(EPOCHS_SHARE * config.epochs)))
    alone = only(lasting, wanted)
    model = alone.model.model_copy(update={"widths": (wanted.width,), "depth_min": wanted.depths})
    teacher = str(run.folder if run.asked_step is None else run.checkpoint)
    return alone.model_copy(
        update={
            "model": model,
            "method": "distill",
            "distill": config.distill.model_copy(update={"teacher": teacher}),
            "init": str(_extracted(run, wanted)),
            "lr": LR_SHARE * peak_lr(config),
            "data": data or config.data,
            "limit": config.limit if data is None else None,
            "out": str(out or run.folder / "polished" / str(wanted)),
        }
    )


def _extracted(run: Run, size: Size) -> Path:
    """The folder of the extracted size, which is written if it is missing and must be that of the run's checkpoint."""
    folder = run.paths.models / str(size)
    if not folder.exists():
        return run.extract(size)
    trained = run.network(size).model.state_dict()
    file = folder / "model.safetensors"
    kept = load_file(file) if file.exists() else {}
    if kept.keys() != trained.keys() or not all(torch.equal(kept[name], value) for name, value in trained.items()):
        raise UserError(
            f"{folder} was extracted at another step of {run.folder} than {run.step}. Delete it, and polish again."
        )
    return folder
