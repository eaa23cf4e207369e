"""How recipe, file and flags are merged into the settings of a run. Imports no torch."""

import logging
from collections.abc import Collection, Mapping
from functools import cache
from importlib import resources
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from poa.config.effect import without_effect
from poa.config.nested import flat, merge, named, names_another, without
from poa.config.pretraining import Config
from poa.config.values import explain
from poa.errors import UserError, nearest
from poa.machine.launchers import is_first

HARMLESS = {"data", "out", "devices", "precision", "checkpointing", "compile", "device", "num_nodes", "workers"}
HARMLESS |= {"parallel", "max_bad_share", "saving", "monitor", "log", "heads.memory"}
"""Settings that may change when a run is resumed. But for rounding they do not alter what is learned, save ``devices``
and ``num_nodes``: ``pretraining/resume.py`` says how. Images may have moved: a fingerprint checks that they are the
same."""
LENGTH = {"epochs", "optimizer.cooldown_epochs"}
"""Settings that may change besides when a run with a constant learning rate is resumed before its cool-down."""

IN_EPOCHS = (
    "optimizer.warmup_epochs",
    "optimizer.backbone_warmup_epochs",
    "optimizer.cooldown_epochs",
    "optimizer.freeze_last_layer_epochs",
    "losses.ibot_start_epoch",
    "losses.teacher_temperature_epochs",
    "views.small_epochs",
    "slim.slow_start_epochs",
)
"""Settings that alter what is learned and are counted in epochs; in a recipe they suit its length."""
FITTED = (*IN_EPOCHS, "views.small_size", "views.local_size")
"""What of a recipe is fitted to a run. One that is resumed keeps what it has: earlier commits took other values."""
WARM_UP, WARM_SHARE = "optimizer.warmup_epochs", 0.2
"""What counts in steps, however short a run is, and its largest share of a run that is shorter than its recipe."""
PART_OF_RUN = ("views.small_epochs",)
"""Those that are lengthened with a run too."""
OF_PATCHES = ("views.small_size", "views.small_epochs", "views.drop_patches")
"""Settings of a recipe that suit the patches of its network, and are left behind with it where another is named."""
_log = logging.getLogger(__name__)

END = "...\n"
"""Ends a YAML document. A kill or a full disk can cut a file off where it still reads as settings."""
LAST = "evaluation"
"""The last section of all settings, which earlier commits wrote without an end mark."""
BEFORE = {"views": {"full_decode": True}}
"""What runs of earlier commits did, where settings of today say otherwise and theirs say nothing."""
MOST_BYTES, MOST_VALUES, DEEPEST = 2**20, 10_000, 16
"""Of a file of settings: its size, values in it, and values in one another."""


def recipes() -> tuple[str, ...]:
    """Names of the shipped recipes."""
    folder = resources.files("poa") / "recipes"
    return tuple(sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")))


def recipe_summary(name: str) -> str:
    """What a shipped recipe is for: the first sentence of the comment that it begins with."""
    comment = " ".join(line.removeprefix("#").strip() for line in _comment(_recipe_text(name)))
    return comment.partition(". ")[0].rstrip(".")


def described(name: str) -> str:
    """A shipped recipe as YAML: its comment, then all settings that it and the recipe it starts from state.

    Raises:
        UserError: There is no such recipe.
    """
    settings, text = read_recipe(name), _recipe_text(name)
    base = yaml.safe_load(text).get("recipe")
    from_base = ["#", f"# It starts from {base}, whose reasons are shown by: poa recipes {base}"]
    comment = [*_comment(text), *(from_base if base else [])]
    return "\n".join([*comment, yaml.safe_dump(settings, sort_keys=False, default_flow_style=None, width=110)])


def _recipe_text(name: str) -> str:
    return (resources.files("poa") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")


def _comment(text: str) -> list[str]:
    return list(takewhile(lambda line: line.startswith("#"), text.splitlines()))


def resolve(
    given: Mapping[str, Any] | None = None,
    *,
    recipe: str | None = None,
    file: str | Path | None = None,
    resume: bool = False,
    place: str = "",
    planned: Mapping[str, Any] | None = None,
) -> Config:
    """Merge settings: defaults, recipe, file, then what is given, the last strongest.

    Where the run is shorter than the recipe, what the recipe counts in epochs is shortened (:func:`of_epochs`), unless
    file or arguments set it; where it is longer, smaller crops are taken for the same part of it. A line of the log
    says so. Where crops have another size than the recipe's, so have the smaller and the local ones, in proportion.

    Args:
        given: Nested settings by name.
        recipe: Name of a shipped recipe; a file may name one too, under the key ``recipe``.
        file: A YAML file of settings.
        resume: Start from the settings of the run in ``out`` in place of defaults. Of a recipe, what is fitted to a run
            is left out then: the run has its own values, or those that earlier commits took.
        place: Where in ``out`` that run is.
        planned: Settings that lie over the recipe and below the others, with all that it counts in epochs.

    Raises:
        UserError: A file cannot be read, a key is unknown, or a value is out of range.
    """
    given = given or {}
    from_file = dict(read_yaml(Path(file))) if file is not None else {}
    name = recipe or from_file.pop("recipe", None)
    from_file.pop("recipe", None)
    out = given.get("out") or from_file.get("out") or ""
    stored = Path(out, place, "config.yaml")
    if resume and out and stored.exists() and stored.stat().st_size:
        of_recipe = {} if name is None else _suited(without(read_recipe(name), FITTED), from_file, given)
        return _validated(merge(_read_whole(stored), _over_one_another(of_recipe, from_file, given)))
    layers = (planned or {}, from_file, given)
    settings = {} if name is None else _over_one_another(_suited(read_recipe(name), *layers), planned or {})
    config = _validated(_over_one_another(settings, from_file, given))
    asked = flat(from_file).keys() | flat(given).keys()
    _tell_without_effect(config, asked)
    changed = {} if name is None else _of_this_length(settings, config.epochs, but=asked | flat(planned or {}).keys())
    if not changed:
        return config
    if is_first():  # of several processes that were launched
        listed = ", ".join(f"{path} from {usual:g} to {value:g}" for path, (usual, value) in changed.items())
        _log.warning(
            "Note: Recipe %s is made for %d epochs. With --epochs %d, these settings are %s: %s. "
            "Values that you set yourself are kept.",
            *(name, settings["epochs"], config.epochs),
            *("shortened" if config.epochs < settings["epochs"] else "lengthened", listed),
        )
    for path, (_, value) in changed.items():
        section, _, key = path.partition(".")
        settings = merge(settings, {section: {key: value}})
    return _validated(_over_one_another(settings, from_file, given))


def _tell_without_effect(config: Config, given: Collection[str]) -> None:
    """A line of the log on settings that are given and have no effect."""
    sentence = without_effect(config, given)
    if sentence is not None and is_first():
        _tell_once(sentence)


@cache
def _tell_once(sentence: str) -> None:
    """A plan merges the same settings several times."""
    _log.warning("Note: %s", sentence)


def _over_one_another(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Settings merged, those of a later layer over those of an earlier one."""
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = merge(merged, named(layer))
    return merged


def _suited(recipe: Mapping[str, Any], *over: Mapping[str, Any]) -> Mapping[str, Any]:
    """The recipe as it suits the network and the crops of the layers that come over it."""
    above = [named(layer) for layer in over]
    if any(names_another(recipe, layer) for layer in above):
        return without(recipe, OF_PATCHES)
    return _with_crops_in_proportion(recipe, _over_one_another(*above))


def _with_crops_in_proportion(recipe: Mapping[str, Any], over: Mapping[str, Any]) -> Mapping[str, Any]:
    """The recipe, its small and its local crops in proportion to global crops that are given, as whole patches."""
    of_recipe, now = flat(recipe), {**flat(recipe), **flat(over)}
    before, crop, patch = of_recipe.get("views.global_size"), now.get("views.global_size"), now.get("model.patch_size")
    if not (isinstance(before, int) and isinstance(crop, int) and isinstance(patch, int | None)):
        return recipe  # no recipe for images, or what is given is not a side, which is refused later
    patch = patch or 1
    most = {"small_size": crop // patch - 1, "local_size": crop // patch}  # patches on a side
    found = {name: of_recipe.get(f"views.{name}") for name in most}
    sides = {
        name: patch * max(1, min(round(side / before * crop / patch), most[name]))
        for name, side in found.items()
        if side is not None
    }
    return merge(recipe, {"views": sides}) if sides else recipe


def of_run(file: Path) -> Config:
    """The settings of a run, which are all in its file.

    Raises:
        UserError: The file cannot be read, or is cut off.
    """
    return _validated(_read_whole(file))


def _validated(settings: Mapping[str, Any]) -> Config:
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        raise UserError(explain(error, Config)) from None


def of_length(config: Config, epochs: int) -> Config:
    """The settings for another number of epochs, with what is counted in epochs as suits it."""
    settings = flat(config.model_dump())
    counted = {name: settings[name] for name in IN_EPOCHS if settings[name]}
    found = {name: of_epochs(name, value, before=config.epochs, now=epochs) for name, value in counted.items()}
    return _with(config.model_copy(update={"epochs": epochs}), found)


def as_begun(config: Config, begun: Config) -> Config:
    """The settings, with what is fitted to a run as one has it that an earlier commit began."""
    settings = flat(begun.model_dump())
    return _with(config, {name: settings[name] for name in FITTED})


def of_plan(config: Config, learned: Mapping[str, Any]) -> Config:
    """The settings with the length that other ones have, which are given as ``learned`` gives them."""
    found = {name: learned[name] for name in LENGTH & learned.keys()}
    return _with(config.model_copy(update={"epochs": found.pop("epochs", config.epochs)}), found)


def _with(config: Config, found: Mapping[str, float]) -> Config:
    for path, value in found.items():
        section, _, key = path.partition(".")
        config = config.model_copy(update={section: getattr(config, section).model_copy(update={key: value})})
    return config


def of_epochs(name: str, value: float, *, before: int, now: int) -> float:
    """What is counted in epochs, for a run of another length: in proportion, but for a shorter run's warm-up.

    That is kept up to a fifth of the run, since a rate that rises within a few steps can make all outputs alike
    (docs/adr/0019-recipes-for-shorter-runs.md).

    Args:
        name: Dotted name of the setting.
        value: It suits so many epochs as ``before``.
        before: Epochs that it is made for.
        now: Epochs of the run.
    """
    proportional = value * now / before
    if name == WARM_UP and now < before:
        return round(max(proportional, min(value, WARM_SHARE * now)), 4)
    return round(proportional, 4)


def _of_this_length(recipe: Mapping[str, Any], epochs: int, *, but: Collection[str]) -> dict[str, tuple[float, float]]:
    """What a recipe counts in epochs, as it is and as it is for so many epochs, where that differs.

    A longer run keeps what only its beginning needs, such as a warm-up.
    """
    usual = {name: value for name, value in flat(recipe).items() if name in IN_EPOCHS and name not in but}
    fitting = {
        name: (value, of_epochs(name, value, before=recipe["epochs"], now=epochs)) for name, value in usual.items()
    }
    return {
        name: (value, now)
        for name, (value, now) in fitting.items()
        if now < value or (name in PART_OF_RUN and now > value)
    }


def read_recipe(name: str) -> dict[str, Any]:
    """Settings of a shipped recipe, merged into those of the recipe that it names under the key ``recipe``.

    Raises:
        UserError: There is no such recipe.
    """
    if not isinstance(name, str) or name not in recipes():
        raise UserError(f"There is no recipe {name!r}. {nearest(str(name), recipes())}")
    settings: dict[str, Any] = yaml.safe_load(_recipe_text(name))
    base = settings.pop("recipe", None)
    return _over_one_another(_suited(read_recipe(base), settings), settings) if base else settings


def read_yaml(path: Path) -> dict[str, Any]:
    """Settings in a YAML file; keys may be written with dashes.

    Raises:
        UserError: The file is missing, is not YAML or does not hold settings.
    """
    return _parsed(path, _text(path))


def _read_whole(path: Path) -> dict[str, Any]:
    """All settings of a run; its file ends with a mark, or, of earlier commits, with the last section."""
    text = _text(path)
    is_marked = text.endswith(f"\n{END}")
    settings = _parsed(path, text) if is_marked or f"\n{LAST}:" in text else {}
    if not is_marked and not (text.endswith("\n") and isinstance(settings.get(LAST), dict)):
        raise UserError(
            f"{path} is cut off: its end is missing, and with it settings of the run. Restore the file, or start a new "
            "run in another --out."
        )
    return merge(BEFORE, settings)


def _text(path: Path) -> str:
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UserError(f"{path} is not a file. Give a YAML file of settings as --config.")
        if path.stat().st_size > MOST_BYTES:
            raise UserError(
                f"{path} is too large for a file of settings (more than {MOST_BYTES:,} bytes). Give another --config."
            )
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"The settings file {path} cannot be read: {error.strerror}. Check --config.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not valid YAML: {_problem(error)}. Fix it, or give another --config.") from None


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(f"{path} is not valid YAML: {_problem(error)}. Fix it, or give another --config.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold settings such as `epochs: 100`, got {type(content).__name__}.")
    _check_size(path, content)
    return _underscores(content)


def _check_size(path: Path, content: Any) -> None:
    """Refuse values within values without end, as a few lines with references can make."""
    left, passed = [(content, 0)], 0
    while left:
        value, depth = left.pop()
        passed += 1
        if depth > DEEPEST or passed > MOST_VALUES:
            raise UserError(
                f"{path} has too many, or too deeply nested, values for a file of settings. Remove references "
                "(& and *)."
            )
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple | set) else ()
        left += [(each, depth + 1) for each in inner]


def _problem(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"{error.problem} in line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}"
    return str(error).splitlines()[0]


def to_yaml(config: Config) -> str:
    """All settings as YAML, to be read back by ``of_run``."""
    settings = config.model_dump(mode="json")
    return yaml.safe_dump(settings, sort_keys=False, default_flow_style=None, width=110, explicit_end=True)


def learned(config: Config) -> dict[str, Any]:
    """Settings that alter what is learned, by dotted name, as JSON holds them."""
    settings = flat(config.model_dump(mode="json"))
    return {name: value for name, value in settings.items() if HARMLESS.isdisjoint((name, name.split(".")[0]))}


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Settings, by dotted name, that differ in what is learned."""
    before, after = learned(old), learned(new)
    return {name: (before[name], after[name]) for name in before if before[name] != after[name]}


def _underscores(content: Mapping[Any, Any]) -> dict[str, Any]:
    return {
        str(key).replace("-", "_"): _underscores(value) if isinstance(value, dict) else value
        for key, value in content.items()
    }
