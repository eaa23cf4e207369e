"""Small pictures with coloured boxes and a file in COCO's format that tells where."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

COLOURS = {3: (230, 40, 40), 7: (40, 230, 40)}
"""By category; ids need not be 1, 2, ..."""


def write_coco(
    root: Path,
    *,
    num_images: int = 6,
    height: int = 48,
    width: int = 64,
    seed: int = 0,
    empty: int = 1,
    masks: bool = True,
) -> tuple[str, Path]:
    """Write images, the last ``empty`` of which hold nothing, and what is in them; the folder and the file."""
    generator = np.random.default_rng(seed)
    (root / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = [], list[dict[str, Any]]()
    for number in range(num_images):
        pixels = generator.integers(60, 100, (height, width, 3)).astype(np.uint8)
        for category, left in zip(COLOURS, (0, width // 2), strict=True):
            if number >= num_images - empty:
                continue
            x, y = left + int(generator.integers(width // 8)), int(generator.integers(height // 3))
            wide, high = width // 3, height // 2
            pixels[y : y + high, x : x + wide] = COLOURS[category]
            corners = [x, y, x + wide, y, x + wide, y + high, x, y + high]
            about = {"bbox": [x, y, wide, high], "area": wide * high, "iscrowd": 0}
            if masks:
                about["segmentation"] = [corners]
            annotations.append({"id": len(annotations) + 1, "image_id": number + 100, "category_id": category, **about})
        Image.fromarray(pixels).save(root / "images" / f"{number}.png")
        images.append({"id": number + 100, "file_name": f"{number}.png", "height": height, "width": width})
    categories = [{"id": 7, "name": "green"}, {"id": 3, "name": "red"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "instances.json").write_text(json.dumps(content))
    return str(root / "images"), root / "instances.json"


def changed(file: Path, **over: Any) -> Path:
    """A copy of the file with other entries: for each list, functions of its entries by place, or the list itself."""
    content = json.loads(file.read_text())
    for name, changes in over.items():
        if isinstance(changes, dict):
            for place, change in changes.items():
                content[name][place] = {**content[name][place], **change}
        elif changes is None:
            del content[name]
        else:
            content[name] = changes
    path = file.with_name("changed.json")
    path.write_text(json.dumps(content))
    return path
