"""The program of a detector as one file that needs timm and torchvision alone, to be handed out with its weights."""

import ast
import inspect
from collections.abc import Iterator
from types import ModuleType

from poa import errors
from poa.tasks import maps
from poa.tasks.detection import cascade, model

_MODULES = (errors, maps, cascade, model)
"""What a detector is made of, each after what it needs."""
_OWN = ("poa", "jaxtyping")
_HEADER = '"""A detector of parts of timm and torchvision, by POA (Apache License 2.0); `load` loads it."""'
_IMPORTS = """import json
from pathlib import Path
import timm
from safetensors.torch import load_file"""
_LOAD = '''
def load(folder=Path(__file__).parent):
    """The detector whose files lie in a folder, in evaluation mode."""
    about = json.loads((Path(folder) / "{description}").read_text())
    backbone = timm.create_model(f"local-dir:{{folder}}", pretrained=True)
    detector = build_detector(backbone, DetectorPlan(**about["plan"]))
    weights = load_file(Path(folder) / "{head}")
    weights |= {{f"{prefix}{{name}}": value for name, value in backbone.state_dict().items()}}
    detector.load_state_dict(weights)
    return detector.eval()
'''


def program(*, description: str, head: str, prefix: str) -> str:
    """The text of the file.

    Args:
        description: Name of the file beside it that holds the ``DetectorPlan`` as ``plan``.
        head: Name of the file of all weights but the backbone's.
        prefix: What the names of the backbone's weights begin with in the detector.
    """
    imports, bodies = dict.fromkeys(_IMPORTS.splitlines()), []
    for module in _MODULES:
        for node in _bare(module):
            if isinstance(node, ast.Import | ast.ImportFrom):
                imports[ast.unparse(node)] = None
            else:
                bodies.append(ast.unparse(node))
    load = _LOAD.format(description=description, head=head, prefix=prefix)
    return "\n\n".join([_HEADER, "\n".join(imports), *bodies]) + "\n\n" + load


def _bare(module: ModuleType) -> Iterator[ast.stmt]:
    """The statements of a module without what is ours, its docstring and the types of functions."""
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
