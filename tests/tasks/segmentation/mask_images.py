"""Small pictures with masks: coloured boxes on a ground, each colour a class."""

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = np.array([(40, 40, 40), (220, 60, 60), (60, 220, 60)], np.uint8)
IGNORE = 255


def write_pairs(
    root: Path, *, num_images: int = 8, height: int = 24, width: int = 32, seed: int = 0, palette: bool = False
) -> tuple[str, str]:
    """Write images and masks; their folders. The outermost row of pixels is ignored."""
    generator = np.random.default_rng(seed)
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True, exist_ok=True)
    for number in range(num_images):
        mask = np.zeros((height, width), np.uint8)
        for each in (1, 2):
            top, left = generator.integers(height // 2), generator.integers(width // 2)
            mask[top : top + height // 2, left : left + width // 2] = each
        noise = generator.integers(-20, 20, (height, width, 3))
        Image.fromarray((COLOURS[mask] + noise).clip(0, 255).astype(np.uint8)).save(root / "images" / f"{number}.jpg")
        mask[0] = IGNORE
        image = Image.fromarray(mask)
        if palette:
            image = image.convert("P")
            image.putpalette(COLOURS.flatten().tolist())
        image.save(root / "masks" / f"{number}.png")
    return str(root / "images"), str(root / "masks")
