r"""Search the settings of a recipe: Optuna, each trial in the same CPU time, scored on images that are not trained on.

A part of the training images is trained on, another part is held out (`--images`, `--held-out`; balanced over classes,
no image in both), and the test images are not needed. The score of a trial is the mean of the k-NN accuracies of the
smallest and the largest size on the held-out part. Each trial has as many epochs as fit into `--minutes` of CPU time by
the cost of its steps, on one thread; scoring does not count. The recipe itself is trained first, on the same terms.

    pip install 'poa-ssl[search]'
    python benchmarks/search.py --recipe convnext-small-data --train cifar10.zip/train --minutes 4 --trials 50 \
        --out runs/search

The same command goes on after an interruption, also within a trial. All trials are in OUT/study.db and OUT/trials.csv,
and the settings of the best one in OUT/best.yaml (`poa pretrain --config OUT/best.yaml --data ... --out ...`).
"""

import argparse
import csv
import hashlib
import io
import json
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import yaml

import poa
from budget import StoppedError, pretrain_within
from poa.config.resolve import resolve
from poa.data.index import ImageIndex, open_index
from poa.data.sampler import spread
from poa.errors import UserError, lacking
from poa.files import make_folder, one_writer, whole_file
from poa.models.run import Paths


class Between(NamedTuple):
    """Any number between two, on a logarithmic scale if it is said."""

    low: float
    high: float
    log: bool = False


Choice = Between | tuple[Any, ...]
SPACE: Mapping[str, Choice] = {
    "losses.rate": Between(0.1, 10.0, log=True),
    "losses.distortion": Between(0.005, 0.5, log=True),
    "losses.intact_share": Between(0.2, 0.8),
    "losses.koleo": (0.0, 0.03, 0.1, 0.3),
    "optimizer.base_lr": Between(5e-4, 2e-2, log=True),
    "optimizer.teacher_momentum": (0.8, 0.9, 0.95, 0.98, 0.99, 0.996),
    "optimizer.weight_decay": Between(0.01, 0.4, log=True),
    "views.global_scale": Between(0.1, 0.6),
    "views.local_scale": Between(0.05, 0.3),
    "views.jitter": Between(0.0, 2.0),
    "views.num_locals": (0, 1, 2, 4),
    "heads.layers": (1, 2, 3),
    "heads.hidden": (128, 256, 512, 1024),
    "heads.bottleneck": (64, 128, 256, 512),
    "batch_size": (32, 64, 128, 256),
    "sampling": ("published", "sandwich"),
    "elastic_samples": (1, 2),
}
"""What is searched. Of pairs, the first value is (the end of the crops' range and of the momentum is the recipe's, the
end of the weight decay is its start); of the jitter, a factor on the usual strengths. The loss is the recipe's."""
ONLY_CODING = ("losses.rate", "losses.distortion")
JITTER = (0.4, 0.4, 0.2, 0.1)
COLUMNS = ("trial", "state", "score", "smallest", "largest", "epochs", "minutes", "error")
"""Of the table, before the settings."""
Row = dict[str, Any]


class Suggests(Protocol):
    """The part of Optuna's trials that the search needs."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of some values."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Search, or go on with it; returns the exit status."""
    given = parse(arguments)
    out = Path(given.out)
    try:
        import optuna
    except ImportError:
        print(lacking("The search", "optuna", extra="search"), file=sys.stderr)
        return 1
    try:
        with one_writer(make_folder(out, content="The study")):
            train, held_out = divided(given.train, out, images=given.images, held_out=given.held_out)
            search(optuna, given, out, lambda settings: outcome(settings, given, out, train, held_out))
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What to search."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", required=True, help="settings to start from, such as convnext-small-data")
    parser.add_argument("--train", required=True, help="labelled images; training does not look at labels")
    parser.add_argument("--out", required=True, help="folder of the study")
    parser.add_argument("--images", type=int, default=5000, help="to train on, which also vote in k-NN")
    parser.add_argument("--held-out", type=int, default=2000, help="images to be classified")
    parser.add_argument("--minutes", type=float, default=4, help="CPU time of a trial")
    parser.add_argument("--trials", type=int, default=50, help="in all, with those that are there already")
    parser.add_argument("--seed", type=int, default=0, help="of the search; all trials train with seed 0")
    return parser.parse_args(arguments)


# ---- settings --------------------------------------------------------------------------------------------------------


def suggested(trial: Suggests, recipe: str) -> dict[str, Any]:
    """Values for a trial by dotted name; coding rates have settings only where the recipe has them."""
    by_coding_rate = resolve(recipe=recipe).losses.kind == "coding-rate"
    found: dict[str, Any] = {}
    for name, choice in SPACE.items():
        if name in ONLY_CODING and not by_coding_rate:
            continue
        if isinstance(choice, Between):
            found[name] = float(f"{trial.suggest_float(name, choice.low, choice.high, log=choice.log):.4g}")
        else:
            found[name] = trial.suggest_categorical(name, choice)
    return found


def settings_of(values: Mapping[str, Any], recipe: str) -> dict[str, Any]:
    """Nested settings, as they are laid over a recipe."""
    config = resolve(recipe=recipe)
    ends: dict[str, Callable[[float], list[float]]] = {
        "optimizer.teacher_momentum": lambda start: [start, max(start, config.optimizer.teacher_momentum[1])],
        "optimizer.weight_decay": lambda both: [both, both],
        "views.global_scale": lambda low: [low, max(low, config.views.global_scale[1])],
        "views.local_scale": lambda low: [low, max(low, config.views.local_scale[1])],
        "views.jitter": lambda factor: [float(f"{factor * strength:.3g}") for strength in JITTER],
    }
    nested: dict[str, Any] = {}
    for name, value in values.items():
        section, _, key = name.rpartition(".")
        inside = nested.setdefault(section, {}) if section else nested
        inside[key] = ends[name](value) if name in ends else value
    return nested


# ---- one trial -------------------------------------------------------------------------------------------------------


def divided(source: str, out: Path, *, images: int, held_out: int) -> tuple[str, str]:
    """Two archives in the folder: images to train on, and others to be classified, both balanced over classes.

    Raises:
        UserError: There are too few images, or they have no labels.
    """
    out.mkdir(parents=True, exist_ok=True)
    index = open_index(source)
    labels = index.require_labels()
    if len(index) < images + held_out:
        raise UserError(
            f"{source} has {len(index):,} images, fewer than --images {images} and --held-out {held_out} together. "
            "Lower one."
        )
    chosen = spread(labels, images + held_out)
    is_held = np.zeros(len(chosen), np.bool_)
    is_held[spread(labels[chosen], held_out)] = True
    files = []
    for name, rows in (("train", chosen[~is_held]), ("held-out", chosen[is_held])):
        file = out / f"{name}-{_digest([source, images, held_out])}.zip"
        if not file.exists():
            _pack(index, rows.tolist(), file)
        files.append(str(file))
    return files[0], files[1]


def _pack(index: ImageIndex, rows: Iterable[int], file: Path) -> None:
    with whole_file(file) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for row in rows:
            ending = Path(index.name(row)).suffix or ".png"
            archive.writestr(f"{index.label(row):04d}/{row:07d}{ending}", index.read(row))


def outcome(settings: Mapping[str, Any], given: argparse.Namespace, out: Path, train: str, held_out: str) -> Row:
    """Train in the time of a trial, and score.

    Raises:
        StoppedError: The user has asked to stop.
        UserError: The settings do not fit, or the run has diverged.
    """
    folder = out / "runs" / _digest([settings, given.recipe, given.minutes, train])
    run, spent = pretrain_within(
        given.minutes, recipe=given.recipe, given={**settings, "data": train, "out": str(folder)}
    )
    sizes = run.sizes()
    scores = poa.evaluate_knn(run, train=train, test=held_out, sizes=[sizes[0], sizes[-1]])
    smallest, largest = (scores[size]["top1@20"] for size in (sizes[0], sizes[-1]))
    shutil.rmtree(Paths(folder).checkpoints)  # settings and metrics stay
    score = (smallest + largest) / 2
    return {"score": score, "smallest": smallest, "largest": largest, "epochs": spent.epochs, "minutes": spent.minutes}


def _digest(settings: Any) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]


# ---- the study -------------------------------------------------------------------------------------------------------


def search(optuna: Any, given: argparse.Namespace, out: Path, of_settings: Callable[[dict[str, Any]], Row]) -> None:
    """Run the recipe and the trials that are left, and write table and best settings after each."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    name, storage = f"{given.recipe}, {given.minutes:g} minutes, {given.images} images", f"sqlite:///{out / 'study.db'}"
    study = optuna.create_study(study_name=name, storage=storage, direction="maximize", load_if_exists=True)
    study.sampler = optuna.samplers.TPESampler(seed=given.seed + len(study.trials))  # or it would repeat itself
    for trial in study.trials:
        if trial.state == optuna.trial.TrialState.RUNNING:  # interrupted
            study.enqueue_trial(trial.params)
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    if "recipe" not in study.user_attrs:
        study.set_user_attr("recipe", of_settings({}))
        print(f"recipe: {study.user_attrs['recipe']['score']:.1f}", flush=True)
    report(study, given.recipe, out)
    while sum(trial.state.is_finished() and is_whole(trial) for trial in study.trials) < given.trials:
        trial = study.ask()
        settings = settings_of(suggested(trial, given.recipe), given.recipe)
        try:
            found = of_settings(settings)
        except StoppedError:
            raise
        except UserError as error:
            trial.set_user_attr("error", str(error))
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            for key, value in found.items():
                trial.set_user_attr(key, value)
            study.tell(trial, found["score"])
        report(study, given.recipe, out)
        print(f"trial {trial.number}: {study.trials[trial.number].value}", flush=True)
    best = out / "best.yaml"
    print(best.read_text(encoding="utf-8") if best.exists() else "No trial has a score.")


def is_whole(trial: Any) -> bool:
    """Whether a finished trial has a score or a reason why not; those that were interrupted have neither."""
    return "score" in trial.user_attrs or "error" in trial.user_attrs


def report(study: Any, recipe: str, out: Path) -> None:
    """Write all trials as a table, and the settings of the best."""
    rows = [{"trial": "recipe", "state": "COMPLETE", **study.user_attrs["recipe"]}]
    rows += [row_of(trial) for trial in study.trials if is_whole(trial)]
    _write(out / "trials.csv", as_csv(rows))
    scored = [trial for trial in study.trials if "score" in trial.user_attrs]
    if scored:
        best = max(scored, key=lambda trial: float(trial.user_attrs["score"]))
        _write(out / "best.yaml", as_yaml(row_of(best), recipe, settings_of(_rounded(best.params), recipe)))


def row_of(trial: Any) -> Row:
    """A line of the table."""
    return {"trial": trial.number, "state": trial.state.name, **trial.user_attrs, **_rounded(trial.params)}


def _rounded(params: Mapping[str, Any]) -> dict[str, Any]:
    """Values as they were trained with."""
    return {
        name: float(f"{value:.4g}") if isinstance(SPACE.get(name), Between) else value for name, value in params.items()
    }


def as_csv(rows: Sequence[Row]) -> str:
    """A table with a column for each setting, empty where a trial has none."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [*COLUMNS, *SPACE], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_yaml(row: Row, recipe: str, settings: Mapping[str, Any]) -> str:
    """Settings that `poa pretrain --config` and a recipe can take, with what they scored."""
    head = (
        f"# Trial {row['trial']}: k-NN (20) of the smallest size {row['smallest']:.1f} %, of the largest "
        f"{row['largest']:.1f} %,\n# after {row['minutes']:.1f} CPU minutes.\n"
    )
    whole = {"recipe": recipe, "epochs": row["epochs"], **settings}
    return head + yaml.safe_dump(whole, sort_keys=False, default_flow_style=None, width=110)


def _write(file: Path, text: str) -> None:
    with whole_file(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
