"""The content of pictures that plots write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def colours_of(picture: Path) -> set[str]:
    """All colours of a PNG file, as "#RRGGBB"."""
    with Image.open(picture) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB")).astype(np.int64).reshape(-1, 3)
    return {f"#{colour:06X}" for colour in np.unique(pixels @ (65536, 256, 1)).tolist()}
