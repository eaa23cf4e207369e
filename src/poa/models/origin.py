"""Where weights come from, for model cards: images, method and length of a run, its scores, and licences."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import timm

from poa.config.pretraining import INITIAL, Config
from poa.errors import counted
from poa.export.card import CARD, UNKNOWN, Evaluation
from poa.models import registry
from poa.text import names_of

METHODS = {
    "poa": "POA (arXiv 2408.01031): self-distillation of all sizes at once",
    "single": "self-distillation of the largest size alone",
    "distill": "distillation of a frozen teacher into all sizes at once",
    "seed": "SEED: distillation of a frozen teacher",
    "slimclr-simclr": "SlimCLR (arXiv 2209.15525): contrast at all widths at once, by SimCLR",
    "slimclr-mocov2": "SlimCLR (arXiv 2209.15525): contrast at all widths at once, by MoCo v2",
    "slimclr-mocov3": "SlimCLR (arXiv 2209.15525): contrast at all widths at once, by MoCo v3",
    "own": "a method from outside of this package",
}
_NOT_SHOWN = {"weights", "image_size", "resize", "mean", "std", "precision", "classes"}
"""Settings that the rest of a card tells."""


def facts_of(config: Config, *, step: int, state: Mapping[str, Any]) -> dict[str, str]:
    """What a run was trained on, how and how long; ``state`` is that of a checkpoint."""
    number = f", {counted(state['num_images'], 'image')}" if "num_images" in state else ""
    digest = f", digest {state['images']}" if "images" in state else ""
    return {
        "method": METHODS[config.method],
        "images": f"{' and '.join(map(base_name, names_of(config.data)))}{number}{digest}; labels were not used",
        "length": f"{counted(step, 'step')} of {counted(config.batch_size, 'image')}, of a training of "
        f"{counted(config.epochs, 'epoch')}",
        "seed": str(config.seed),
    }


def inherited_by(config: Config) -> dict[str, str | None]:
    """Licences of the weights that a run began with, and of those of its teacher."""
    given = [each for each in (config.init, config.distill.teacher) if each and each != INITIAL]
    return {base_name(name): licence_of(name) for name in given}


def licence_of(name: str) -> str | None:
    """The licence of trained weights: that of timm's list, or of the card in their folder; None if it is not known."""
    folder = registry.folder_of(name)
    if folder.exists():
        return _licence_on_card(folder / CARD)
    known = timm.get_pretrained_cfg(name, allow_unregistered=True) if timm.is_model(name.partition(".")[0]) else None
    return None if known is None else known.license


def base_name(name: str) -> str:
    """The end of a path, with the archive that it is in; other names, such as timm's, as they are."""
    path = registry.folder_of(name)
    if not (path.is_absolute() or path.exists() or name.count("/") > 1 or name.startswith(".")):
        return name
    path = path.resolve() if path.name in ("", "..") else path
    return f"{path.parent.name}/{path.name}" if path.parent.suffix else path.name


def places(source: str) -> str:
    """Where images are, in words, without the folders above."""
    parts = re.split(r"(^\d+ images of | with (?:masks )?)", source)
    return "".join(part if number % 2 or not part else base_name(part) for number, part in enumerate(parts))


def evaluations_of(folder: Path, size: str, *, weights: str) -> Iterator[Evaluation]:
    """Scores of a size that the files below a folder of results hold for these weights; damaged files have none."""
    for file in sorted(folder.glob("*/*.json")):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if content["settings"]["weights"] != weights or content["protocol"] == "quality":
                continue
            scores = {name: float(value) for name, value in content["scores"].get(size, {}).items()}
            ends = content.get("intervals", {}).get(size, {})
            intervals = {name: (float(low), float(high)) for name, (low, high) in ends.items()}
            found = Evaluation(file.parent.name, how_scored(content["settings"], content["sources"]), scores, intervals)
        except (AttributeError, KeyError, OSError, TypeError, ValueError):
            continue
        if scores:
            yield found


def how_scored(settings: Mapping[str, Any], sources: Mapping[str, str]) -> str:
    """On which images, and with which settings; ``settings`` and ``sources`` as files of results have them."""
    where = [f"{what}: {places(source)} ({_number(settings.get(what))})" for what, source in sources.items()]
    chosen = in_words({name: value for name, value in settings.items() if name not in sources})
    return "; ".join([*where, *([chosen] if chosen else [])])


def in_words(settings: Mapping[str, Any]) -> str:
    """Settings in a line, but those that a card tells elsewhere."""
    shown = {name: value for name, value in settings.items() if name not in _NOT_SHOWN and value is not None}
    return ", ".join(f"{name} {json.dumps(value, default=str)}" for name, value in shown.items())


def _number(identity: Any) -> str:
    """How many images there are: the beginning of what identifies them."""
    found = re.match(r"\d+ images", str(identity))
    return found[0] if found else "images"


def _licence_on_card(card: Path) -> str | None:
    try:
        text = card.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.match(r"---\n(?:.*\n)*?license: *['\"]?([^\n'\"]+)", text.partition("\n---\n")[0] + "\n")
    return None if found is None or found[1].strip() in (UNKNOWN, "") else found[1].strip()
