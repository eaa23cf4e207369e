"""What all settings are made of: base class, types of values, and what is said of wrong ones. Imports no torch."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypeVar, get_args

from cyclopts import Parameter, Token
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    field_validator,
)

from poa.errors import UserError, nearest

T = TypeVar("T")
S = TypeVar("S", bound="Settings")
Count = Annotated[int, Field(ge=1)]
Pixels = Annotated[int, Field(ge=1, le=2**13)]
Natural = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**64)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
ShareBelowOne = Annotated[float, Field(ge=0.0, lt=1.0)]
ShareAboveZero = Annotated[float, Field(gt=0.0, le=1.0)]


def _read_step(_: Any, tokens: Sequence[Token]) -> int | str:
    text = tokens[0].value
    if text != "best" and not text.isdecimal():
        raise ValueError(f"a checkpoint is named by its step, such as 1200, or by the word best, got {text!r}")
    return text if text == "best" else int(text)


if TYPE_CHECKING:
    Sources: TypeAlias = str | tuple[str, ...]
else:  # flags are parsed as what is written here; one name stays a text, also in files
    Sources = Annotated[
        tuple[str, ...],
        BeforeValidator(lambda names: (names,) if isinstance(names, str) else names),
        AfterValidator(lambda names: names[0] if len(names) == 1 else names),
        PlainSerializer(lambda names: names),
        Parameter(negative=(), show_default=False),
    ]
"""Names of one source of images or of several."""


Step = Annotated[int | Literal["best"], Parameter(converter=_read_step)]
"""Which checkpoint of a run: the step, or the one with the best score while training."""
LONGEST = 100
"""Characters of a wrong value that are shown."""
NO_FLAG = Parameter(parse=False)
"""Marks a setting that the command line does not offer."""


def _ascending(values: tuple[float, ...]) -> tuple[float, ...]:
    """Check that the first value is not above the second, and so on."""
    if list(values) != sorted(values):
        raise ValueError("it should be the smallest value, then the largest")
    return values


Ascending = AfterValidator(_ascending)
"""For values of which the first is the smallest."""
AreaRange = Annotated[tuple[ShareAboveZero, ShareAboveZero], Ascending]
"""Smallest and largest share of the area of an image."""


class Settings(BaseModel):
    """Settings of one subject: at once flags of a command, presets and arguments, checked when they are made.

    The string below a field is the help of its flag.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    if not TYPE_CHECKING:  # for type checkers, the constructor takes the fields

        def __init__(self, **values: Any) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise UserError(explain(error, type(self), called=flag)) from None
            self.check()

        # flags are made by pydantic's own validation, without this: they need not fit together before a preset is below
        __init__.__pydantic_base_init__ = True

    @field_validator("*", mode="before")
    @classmethod
    def _read_none(cls, value: Any, info: Any) -> Any:  # pydantic's ValidationInfo; beartype cannot check it
        """On the command line, None is written as a word."""
        optional = type(None) in get_args(cls.model_fields[info.field_name].annotation)
        return None if optional and isinstance(value, str) and value in ("none", "null") else value

    def check(self) -> None:
        """Raise UserError where values do not fit together; those of flags are checked once a preset is below them."""

    def changed(self: S, **values: Any) -> S:
        """These settings with other values, checked again."""
        return type(self)(**{**dict(self), **values})

    def over(self: S, preset: S) -> S:
        """The preset, with the values given here in place of its own."""
        return preset.changed(**self.given())

    def given(self) -> dict[str, Any]:
        """The values that were given, in place of those of the class."""
        return {name: getattr(self, name) for name in self.model_fields_set}


def check_seed(seed: int) -> None:
    """See that a seed that is no setting is one; UserError if random generators do not take it."""
    if not 0 <= seed < 2**64:
        raise UserError(f"--seed must be from 0 to 2^64 - 1, got {seed}.")


def preset_of(presets: Mapping[str, T], name: str) -> T:
    """The settings of that name; UserError if there are none."""
    if name not in presets:
        raise UserError(f"There is no preset {name!r}. {nearest(name, presets, most=len(presets))}")
    return presets[name]


def dotted(keys: Sequence[str | int]) -> str:
    """How Python and YAML name a setting."""
    return ".".join(str(key) for key in keys)


def flag(keys: Sequence[str | int]) -> str:
    """How the command line names a setting; numbers are places in its value."""
    return "--" + ".".join(key for key in keys if isinstance(key, str)).replace("_", "-")


def written(value: Any) -> str:
    """A value as the command line takes it: several after one another, ``none`` for none."""
    values = value if isinstance(value, tuple | list) else (value,)
    return " ".join("none" if each is None else f"{each}" for each in values)


def explain(
    error: ValidationError, settings: type[BaseModel], *, called: Callable[[Sequence[str | int]], str] = dotted
) -> str:
    """A sentence for each wrong key or value, with the nearest right one."""
    sentences, problems = [], error.errors()
    inside = {problem["loc"][:-1] for problem in problems}  # values that are wrong leave a list that is too short
    for problem in problems:
        keys = problem["loc"]
        if problem["type"] == "too_short" and keys in inside:
            continue
        name, value = called(keys), problem["input"]
        if problem["type"] == "extra_forbidden":
            sentences.append(f"Unknown setting {name!r}. {_meant(keys, settings)}")
        elif problem["type"] == "literal_error":
            choices = [choice.strip(" '") for choice in problem["ctx"]["expected"].replace(" or ", ", ").split(",")]
            sentences.append(f"{name} cannot be {_shown(value)}. {nearest(str(value), choices)}")
        elif problem["type"] == "model_type":
            sentences.append(f"{name} must be named settings, got {value!r}.")
        else:
            what = problem["msg"].removeprefix("Value error, ").replace("Input should", "it should")
            sentences.append(f"{name} cannot be {_shown(value)}: {what[0].lower()}{what[1:]}.")
    return " ".join(sentences)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


OTHER_NAMES = {"learning_rate": "lr", "num_workers": "workers", "output": "out", "output_dir": "out", "gpus": "devices"}
OTHER_NAMES |= {"arch": "model.name", "pretrained": "init", "weights": "init", "max_epochs": "epochs"}
OTHER_NAMES |= {
    "bs": "batch_size",
    "dataset": "data",
    "data_dir": "data",
    "amp": "precision",
    "grad_clip": "optimizer.clip",
}
"""What other packages call some settings of a run."""


def meant(name: str, known: Sequence[str]) -> str | None:
    """The known dotted name that a wrong one may mean: also one of another section, or as another package has it."""
    *_, last = name.split(".")
    ends = {each.rpartition(".")[2]: each for each in reversed(known)}
    if found := ends.get(last) or (OTHER_NAMES.get(last) if OTHER_NAMES.get(last) in known else None):
        return found
    close = difflib.get_close_matches(name, known, n=1) or difflib.get_close_matches(last, ends, n=1)
    return ends.get(close[0], close[0]) if close else None


def _meant(keys: Sequence[str | int], settings: type[BaseModel]) -> str:
    """Which setting an unknown one may mean, or those of its section."""
    found = meant(dotted(keys), names_of_settings(settings))
    return f"Did you mean {found!r}?" if found else nearest("", _siblings(settings, keys))


def names_of_settings(settings: type[BaseModel], prefix: str = "") -> list[str]:
    """All settings by dotted name, with those of sections."""
    found: list[str] = []
    for name, field in settings.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found += names_of_settings(kind, f"{prefix}{name}.")
        else:
            found.append(f"{prefix}{name}")
    return found


def _siblings(settings: Any, keys: Sequence[str | int]) -> list[str]:
    for key in keys[:-1]:
        settings = settings.model_fields[key].annotation
    return list(settings.model_fields)


def without_paths(value: Any) -> Any:
    """Settings with texts for paths."""
    if isinstance(value, Mapping):
        return {name: without_paths(below) for name, below in value.items()}
    return fspath(value) if isinstance(value, PathLike) else value
