"""The gallery of the documents: what five data sets came to with `--data`, `--out` and `--hours` alone.

It trains nothing: `benchmarks/defaults.py` has, and scored all sizes. It shows charts and report pages, not the
photographs of others. Report pages are shown by playwright (of the extra `dev`) and Chromium.

    python benchmarks/gallery.py --runs runs/defaults --page docs/gallery.md
"""

import argparse
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

import poa
from defaults import CASES, Case
from poa.plots.figure import INK, save, style

ABOUT = {
    "digits": "Handwritten digits of scikit-learn, 8 pixels. k-NN accuracy on 445 others, 10 classes.",
    "CIFAR-10": "10,000 of the training images, 32 pixels. k-NN accuracy on the 10,000 test images, 10 classes; 5,000 "
    "labelled neighbours.",
    "Caltech-101": "Photographs of objects, about 160 pixels; trained on all, without labels. k-NN accuracy by the "
    "lists in the archive, 102 classes.",
    "CamVid": "Street scenes. Mean IoU of 11 classes by a linear head on frozen features, trained for two epochs.",
    "coco128": "A hundred photographs and no labels: of the ten nearest neighbours of two views of an image, the share "
    "that both have, on a hundred others.",
}
UNITS = {"knn": "k-NN top-1, %", "segmentation": "mIoU, %", "quality": "shared neighbours, %"}


@dataclass(frozen=True)
class Shown:
    """A run as it is shown.

    Attributes:
        name: Of the data set.
        case: What it was trained on, and how it was scored.
        plan: Lines of its plan: names and what they say.
        seconds: That the whole run took.
        trained: Scores by size.
        untrained: The same of fresh networks.
        parameters: Millions of parameters by size.
    """

    name: str
    case: Case
    plan: Mapping[str, str]
    seconds: str
    trained: Mapping[str, float]
    untrained: Mapping[str, float]
    parameters: Mapping[str, float]


def main() -> None:
    """Read the runs, and write the page and its picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="the --out of benchmarks/defaults.py")
    parser.add_argument("--page", type=Path, required=True)
    arguments = parser.parse_args()
    runs = [shown(arguments.runs, name, case) for name, case in CASES.items() if (arguments.runs / name).exists()]
    pictures = arguments.page.parent / "images"
    draw(runs, pictures / "gallery.png")
    photograph([run for run in runs if has_scores(run)], arguments.runs, pictures)
    arguments.page.write_text("\n".join(page(runs)) + "\n", encoding="utf-8")


def shown(folder: Path, name: str, case: Case) -> Shown:
    """A run with what was written of it."""
    run = folder / name
    lines = (line.partition(": ") for line in (run / "plan.txt").read_text(encoding="utf-8").splitlines())
    [took] = re.findall(r"^time +(\d[\d:]*)", run.with_suffix(".log").read_text(encoding="utf-8"), re.MULTILINE)[-1:]
    return Shown(
        name,
        case,
        {key: what for key, _, what in lines},
        took,
        scores(run, case, "teacher"),
        scores(run, case, "untrained"),
        {str(row["size"]): float(str(row["parameters"])) / 1e6 for row in poa.sizes(run)},
    )


def scores(run: Path, case: Case, branch: str) -> dict[str, float]:
    """Scores in percent by size, as the command wrote them."""
    of_sizes = json.loads((run / "eval" / branch / f"{case.file}.json").read_text(encoding="utf-8"))["scores"]
    factor = 100 if case.file == "quality" else 1
    return {
        size: factor * next(value for name, value in found.items() if name.startswith(case.key))
        for size, found in of_sizes.items()
    }


def has_scores(run: Shown) -> bool:
    """Whether its report has something to choose by: measures without labels are none."""
    return run.case.file != "quality"


def photograph(runs: list[Shown], folder: Path, pictures: Path) -> None:
    """Write the report of each run, and what a browser shows of it first."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"))
        shown = browser.new_page(viewport={"width": 1100, "height": 740})
        for run in runs:
            shown.goto(poa.write_report(folder / run.name).absolute().as_uri())
            picture = pictures / picture_of(run)
            shown.screenshot(path=picture)
            with Image.open(picture) as image:
                image.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE).save(picture, optimize=True)
        browser.close()


def picture_of(run: Shown) -> str:
    """File name of the picture of its report."""
    return f"gallery-{run.name}.png"


def draw(runs: list[Shown], out: Path) -> None:
    """One panel a run: scores by parameters, trained and untrained."""
    figure = Figure(figsize=(7.2, 5), layout="constrained")
    panels = list(figure.subplots(2, 3).flat)
    for axes in panels[len(runs) :]:
        axes.set_axis_off()
    for axes, run in zip(panels, runs, strict=False):
        for found, colour, label in ((run.trained, "#31688e", "trained"), (run.untrained, "#bdbdbd", "untrained")):
            axes.scatter([run.parameters[size] for size in found], found.values(), s=18, color=colour, label=label)
        axes.set_ylim(0, 1.1 * max(run.trained.values()))
        style(axes, title=run.name, x="million parameters", y=UNITS[run.case.file])
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="outside lower right", ncols=2, frameon=False, labelcolor=INK
    )
    save(figure, out, dpi=130)


def page(runs: list[Shown]) -> Iterator[str]:
    """The lines of the page."""
    yield "# Gallery\n"
    yield (
        "Five runs with nothing chosen by hand: `--data`, `--out` and `--hours 0.1`, five to seven minutes each on one "
        "thread of a CPU. Every run gives 12 sizes; all of them are better than the same network untrained. "
        "Longer runs and other settings are in [results.md](results.md).\n"
    )
    yield (
        "![Five charts of scores by parameters: trained sizes are above untrained ones in all](images/gallery.png)\n"
    )
    yield (
        "`python benchmarks/defaults.py --data FOLDER_OF_ZIPS --out runs/defaults` trains and scores them again, and "
        "`python benchmarks/gallery.py --runs runs/defaults --page docs/gallery.md` writes this page.\n"
    )
    for run in runs:
        yield f"## {run.name}\n"
        yield f"{ABOUT[run.name]}\n"
        command = run.case.train.replace("DATA/", "")
        score = re.sub(r"DATA/|OUT/", "", run.case.score).replace("RUN", f"runs/{run.name}")
        score = re.sub(r" (--test |--image-size )", r" \\\n    \1", score) if len(score) > 120 else score
        yield f"```bash\npoa pretrain {command} --out runs/{run.name} --hours 0.1\npoa evaluate {score}\n```\n"
        yield f"Chosen: {chosen(run)}. The run took {run.seconds} minutes.\n"
        yield from table(run)
        if has_scores(run):
            yield f"`poa report runs/{run.name}`:\n\n![Page of all sizes of {run.name}](images/{picture_of(run)})\n"


def chosen(run: Shown) -> str:
    """The settings that make the run what it is."""
    epochs = next(name for name in run.plan if name.startswith("--epochs"))
    network = [name for name in run.plan if name.startswith(("--model.patch-size", "--views.global-size"))]
    recipe = "--recipe " + run.plan["recipe"].partition(":")[0]
    return ", ".join(f"`{name}`" for name in (recipe, *network, epochs))


def table(run: Shown) -> Iterator[str]:
    """The smallest, a middle and the largest size."""
    sizes = list(run.trained)
    yield "| size | million parameters | trained | untrained |"
    yield "|---|---|---|---|"
    for size in (sizes[0], sizes[len(sizes) // 2], sizes[-1]):
        yield f"| {size} | {run.parameters[size]:.2f} | {run.trained[size]:.1f} | {run.untrained[size]:.1f} |"
    gains = [run.trained[size] - run.untrained[size] for size in sizes]
    better = sum(gain > 0 for gain in gains)
    by = f"{min(gains):.1f} to {max(gains):.1f} points"
    yield f"\n{better} of {len(sizes)} sizes are better than untrained, by {by}.\n"


if __name__ == "__main__":
    main()
