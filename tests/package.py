"""Try the built package away from this checkout, beside the packages of this Python: `make package` does."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
COMMANDS = (
    "--version",
    "recipes demo",
    "pretrain --data digits/train --out run --recipe demo --epochs 1 --limit 64 --monitor.data none",
    "extract run --size 64x3",
    "report run",
)
"""Between them they use recipes, digits, the templates of the page and of the model card."""


def main() -> None:
    """Look into the wheel of a folder, install it elsewhere, and use it there."""
    [wheel] = Path(sys.argv[1]).resolve().glob("*.whl")
    look_into(wheel)
    with TemporaryDirectory() as folder:
        site, elsewhere = Path(folder, "site"), Path(folder, "elsewhere")
        run(elsewhere, "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site), str(wheel))
        place = "import poa, sys; sys.exit(not poa.__file__.startswith(sys.argv[1]))"
        run(elsewhere, "-c", place, str(site), packages=site)
        for words in COMMANDS:
            run(elsewhere, "poa", *words.split(), packages=site)


def look_into(wheel: Path) -> None:
    """It has all files of the library, the licences, and nothing else."""
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = {path for path in (ROOT / "src" / "poa").rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert names == {path.relative_to(ROOT / "src").as_posix() for path in files}, names ^ files
    about = {name.partition(".dist-info/")[2] for name in zipfile.ZipFile(wheel).namelist()} - {""}
    licences = {"licenses/LICENSE", "licenses/NOTICE"}
    assert about == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", *licences}, about


def run(folder: Path, *words: str, packages: Path | None = None) -> None:
    """Run a module or a line of Python there; one that fails ends this program."""
    folder.mkdir(exist_ok=True)
    module = () if words[0] == "-c" else ("-m",)
    environment = {**os.environ, "PYTHONPATH": str(packages or "")}
    subprocess.run([sys.executable, *module, *words], cwd=folder, env=environment, check=True)


if __name__ == "__main__":
    main()
