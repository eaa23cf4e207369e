"""A detector as a folder: the backbone for timm, the rest beside it, and a program that puts them together."""

import ast
import inspect
import json
import runpy
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models.detection.roi_heads import RoIHeads

from poa import errors
from poa.data.images import Preprocessing
from poa.export.card import Origin, Use, model_card
from poa.export.timm import Blueprint, network_facts, num_parameters, save_weights, unlike, write_model
from poa.files import whole_folder
from poa.models.folder import load_model
from poa.tasks import maps
from poa.tasks.detection import cascade, model
from poa.tasks.detection.model import DetectorPlan
from poa.text import unicode_text

HEAD, PROGRAM, DESCRIPTION = "head.safetensors", "detector.py", "detection.json"
_BACKBONE = "backbone.maps.model."
"""What the names of the backbone's weights begin with."""
_CODE = """import sys

sys.path.insert(0, ".")
from detector import load

detector = load()
found = detector([image])[0]"""
_NOTES = """`image`: RGB in 0..1, 3 x height x width, of any size; several make a longer list. `found`: {found}, in
pixels of the image. The label `n` is the `n`-th of the `categories` in `detection.json`, counted from 1.
`detector.py` needs timm, torchvision and safetensors. It loads torchvision's `GeneralizedRCNN`, which can be trained
further like torchvision's own models."""
_MODULES = (errors, maps, cascade, model)
"""What the program is made of, each after what it needs."""
_OWN = ("poa", "jaxtyping")
_HEADER = '"""A detector of parts of timm and torchvision, by POA (Apache License 2.0); `load` loads it."""'
_IMPORTS = ("import json", "from pathlib import Path", "import timm", "from safetensors.torch import load_file")
_LOAD = f'''
def load(folder=Path(__file__).parent):
    """The detector whose files lie in a folder, in evaluation mode."""
    about = json.loads((Path(folder) / "{DESCRIPTION}").read_text(encoding="utf-8"))
    backbone = timm.create_model(f"local-dir:{{folder}}", pretrained=True)
    detector = build_detector(backbone, DetectorPlan(**about["plan"]))
    weights = load_file(Path(folder) / "{HEAD}")
    weights |= {{f"{_BACKBONE}{{name}}": value for name, value in backbone.state_dict().items()}}
    detector.load_state_dict(weights)
    return detector.eval()
'''


def write_detector(
    network: Any,
    blueprint: Blueprint,
    folder: Path,
    *,
    plan: DetectorPlan,
    categories: Mapping[int, str],
    preprocessing: Preprocessing,
    name: str,
    origin: Origin,
) -> None:
    """Write a detector, moved to the CPU, and check that what is read back does the same (else a ``RuntimeError``).

    ``categories`` are names by id, in the order of the labels; ``preprocessing`` is that of square images for the
    backbone alone; ``origin`` says where the backbone comes from.
    """
    network = network.cpu().eval()
    found = "`boxes` (left, top, right, bottom), `labels`, `scores`" + (" and `masks`" if plan.has_masks else "")
    card = model_card(
        task="object-detection",
        name=name,
        summary=f"{plan.head} on {type(network.backbone.maps.model).__name__} for "
        f"{errors.counted(plan.num_classes, 'class')}. {num_parameters(network):,} parameters, images of {plan.side} "
        "pixels on their shorter side.",
        uses=[Use("torchvision", _CODE, _NOTES.format(found=found))],
        preprocessing=preprocessing,
        model=network_facts(network.backbone.maps.model, blueprint, part="backbone: "),
        origin=origin,
        classes=tuple(categories.values()),
        further="That is for the backbone alone; the detector prepares its images itself.",
    )
    about = {
        "categories": [{"id": number, "name": unicode_text(called)} for number, called in categories.items()],
        "plan": asdict(plan),
    }
    with whole_folder(folder) as unfinished:
        write_model(network.backbone.maps.model, blueprint, unfinished, preprocessing=preprocessing, card=card)
        weights = {key: value for key, value in network.state_dict().items() if not key.startswith(_BACKBONE)}
        save_weights(weights, unfinished / HEAD)
        (unfinished / PROGRAM).write_text(program(), encoding="utf-8")
        (unfinished / DESCRIPTION).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        _check(network, unfinished, side=plan.side)


class ReadDetector(NamedTuple):
    """A detector that was written: in evaluation mode, its plan, and the names of its categories by id."""

    network: Any
    plan: DetectorPlan
    categories: Mapping[int, str]


def is_detector(folder: Path) -> bool:
    """Whether a folder holds a detector."""
    return (folder / DESCRIPTION).is_file()


def read_detector(folder: Path) -> ReadDetector:
    """What ``write_detector`` wrote to a folder, on the CPU; a ``UserError`` if it is not there or damaged.

    The program beside it is not run: who changes it could do anything.
    """
    backbone = load_model(folder)
    try:
        about = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        plan = DetectorPlan(**about["plan"])
        categories = {int(each["id"]): str(each["name"]) for each in about["categories"]}
        weights = load_file(folder / HEAD)
        weights |= {f"{_BACKBONE}{name}": value for name, value in backbone.state_dict().items()}
        with torch.random.fork_rng(devices=[]):
            network = model.build_detector(backbone, plan)
        network.load_state_dict(weights)
        assert len(categories) == plan.num_classes, "its categories are not as many as its classes"
    except Exception as error:  # of files that others may have written
        raise errors.UserError(
            f"The detector in {folder} cannot be loaded ({errors.first_line(error)}). Restore its files, or train it "
            "again with `poa detect`."
        ) from None
    return ReadDetector(network.eval().requires_grad_(False), plan, categories)


def program() -> str:
    """The text of a program that needs timm and torchvision alone: our own modules, and how to load the files."""
    imports, bodies = dict.fromkeys(_IMPORTS), []
    for module in _MODULES:
        for node in _bare(module):
            if isinstance(node, ast.Import | ast.ImportFrom):
                imports[ast.unparse(node)] = None
            else:
                bodies.append(ast.unparse(node))
    return "\n\n".join([_HEADER, "\n".join(imports), *bodies]) + "\n\n" + _LOAD


def _bare(module: ModuleType) -> Iterator[ast.stmt]:
    """The statements of a module without imports of ours, its docstring and the types of functions."""
    tree = ast.parse(inspect.getsource(module))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None
    for statement in tree.body[1:]:
        names = [statement.module or ""] if isinstance(statement, ast.ImportFrom) else []
        if not any(name.split(".")[0] in _OWN for name in names):
            yield statement


def _detections(network: Any, image: Tensor) -> Mapping[str, Tensor]:
    """What is detected, however unlikely: a threshold might leave nothing to compare."""
    heads = [each for each in network.modules() if isinstance(each, RoIHeads)]
    thresholds = [each.score_thresh for each in heads]
    for each in heads:
        each.score_thresh = 0.0
    detections: Mapping[str, Tensor] = network([image])[0]
    for each, threshold in zip(heads, thresholds, strict=True):
        each.score_thresh = threshold
    return detections


@torch.inference_mode()
def _check(network: Any, folder: Path, *, side: int) -> None:
    """As the model card says."""
    load = runpy.run_path(str(folder / PROGRAM))["load"]
    image = torch.rand(3, side, side + side // 4, generator=torch.Generator().manual_seed(0))
    found, expected = (_detections(each, image) for each in (load(folder), network))
    if found.keys() != expected.keys() or not all(torch.equal(found[key], expected[key]) for key in expected):
        raise unlike(folder)
