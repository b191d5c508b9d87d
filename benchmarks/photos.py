"""The photos and the weights that the scripts measure with: real ones where there are some.

Every photo is a JPEG that any program takes the same way: no EXIF rotation, no CMYK, too small for
a scaled decode, and its colour profile, where it has one, taken off.  What this program does with
those differs from what a plain script does by design, and is no matter of speed.
"""

import os
import shutil
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image
from report import DATA

REAL = DATA / "photos" / "imagenet-sample"
SIZE = (500, 375)
BIG = (4000, 3000)


def photos(folder: Path, number: int) -> str:
    """Put photos of ImageNet's size into a new folder; return what they are, in words."""
    folder.mkdir()
    real = _real(number)
    for path in real:
        with Image.open(path) as image:
            if "icc_profile" in image.info:
                image.save(folder / path.name, quality="keep", icc_profile=None)
            else:
                shutil.copy(path, folder)
    for n in range(number - len(real)):
        drawn(np.random.default_rng(n)).save(folder / f"drawn-{n:05}.jpg", quality=90)
    return f"{len(real)} of imagenet-sample" if len(real) == number else f"{number}, some drawn"


def enlarged(folder: Path, number: int, cache: Path) -> str:
    """Put photos enlarged to 12 megapixels into a new folder; return what they are, in words.

    Enlarging takes a second a photo: what was enlarged once lies in ``cache``.
    """
    folder.mkdir()
    cache.mkdir(parents=True, exist_ok=True)
    real = _real(number)
    for n in range(number):
        kept = cache / (f"{real[n].stem}.jpg" if n < len(real) else f"drawn-{n:05}.jpg")
        if not kept.exists():
            with _opened(real, n) as image:
                upright = image.width >= image.height
                large = image.convert("RGB").resize(
                    BIG if upright else BIG[::-1], Image.Resampling.LANCZOS
                )
            large.save(kept.with_suffix(".tmp"), "JPEG", quality=90)
            kept.with_suffix(".tmp").rename(kept)
        os.symlink(kept, folder / kept.name)
    return (
        f"{min(number, len(real))} of imagenet-sample enlarged, {max(0, number - len(real))} drawn"
    )


def drawn(rng: np.random.Generator) -> Image.Image:
    """Draw a picture of ImageNet's size: soft colours with a grain."""
    soft = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize(SIZE)
    grain = rng.integers(-24, 25, (*SIZE[::-1], 3), np.int16)
    return Image.fromarray(np.clip(np.asarray(soft, np.int16) + grain, 0, 255).astype(np.uint8))


def weights(network: str, folder: Path) -> tuple[Path, str]:
    """Return a state dict of a network of torchvision's: a real one, or seeded random numbers."""
    real = DATA / "weights" / f"{network}.pth"
    if real.exists():
        return real, "real weights"
    import torch
    import torchvision

    path = folder / f"{network}.pth"
    if not path.exists():
        torch.manual_seed(0)
        torch.save(torchvision.models.get_model(network, weights=None).state_dict(), path)
    return path, "seeded random weights"


def _real(number: int) -> list[Path]:
    found: list[Path] = []
    for path in sorted(REAL.glob("*.JPEG")):
        if len(found) == number:
            break
        with Image.open(path) as image:
            if (
                image.format == "JPEG"
                and image.mode in ("RGB", "L")
                and image.getexif().get(ExifTags.Base.Orientation, 1) == 1
                and min(image.size) < 1024
            ):
                found.append(path)
    return found


def _opened(real: list[Path], n: int) -> Image.Image:
    return Image.open(real[n]) if n < len(real) else drawn(np.random.default_rng(n))
