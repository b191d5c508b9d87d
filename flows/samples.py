"""Draw sample pictures in families of variations, so that right answers are known.

Every picture of a family shows the same scene: cropped, resized, re-encoded, darker, warmer, turned
by the camera (EXIF) or lightly blurred.  The same seed draws the same pictures.
"""

import os
import random
from typing import Any

from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

SIZE = (320, 240)
VARIATIONS = ("plain", "crop", "small", "quality", "dark", "warm", "turned", "blur", "png")


def draw_families(folder: str, families: int, seed: int = 0) -> int:
    """Draw ``families`` times ``len(VARIATIONS)`` pictures below ``folder``; return how many.

    The family is the name of the sub-folder, the variation the name of the file.
    """
    for family in range(families):
        scene = draw_scene(random.Random(f"{seed}-{family}"))  # noqa: S311
        target = os.path.join(folder, f"family-{family:03d}")
        os.makedirs(target, exist_ok=True)
        for name in VARIATIONS:
            save_variation(scene, target, name)
    return families * len(VARIATIONS)


def draw_scene(rng: random.Random) -> Image.Image:
    """Draw one scene: a graded sky and ground, a texture and some shapes."""
    top, bottom = _colour(rng), _colour(rng)
    scene = Image.linear_gradient("L").resize(SIZE)
    scene = Image.composite(Image.new("RGB", SIZE, bottom), Image.new("RGB", SIZE, top), scene)
    draw = ImageDraw.Draw(scene)
    _texture(draw, rng)
    for _ in range(rng.randint(4, 9)):
        _shape(draw, rng)
    return scene


def save_variation(scene: Image.Image, folder: str, name: str) -> None:
    """Save one variation of ``scene`` as ``folder/name.jpg`` (or ``.png``)."""
    width, height = scene.size
    options: dict[str, Any] = {"quality": 90}
    if name == "crop":
        scene = scene.crop((width // 12, height // 12, width - width // 12, height))
    elif name == "small":
        scene = scene.resize((width * 3 // 4, height * 3 // 4))
    elif name == "quality":
        options["quality"] = 35
    elif name == "dark":
        scene = ImageEnhance.Brightness(scene).enhance(0.7)
    elif name == "warm":
        scene = ImageEnhance.Color(scene).enhance(1.5)
    elif name == "blur":
        scene = scene.filter(ImageFilter.GaussianBlur(1.2))
    elif name == "turned":  # lies on its side, and says so: shown upright by every viewer
        scene = scene.transpose(Image.Transpose.ROTATE_90)
        exif = Image.Exif()
        exif[0x0112] = 6
        options["exif"] = exif
    suffix = "png" if name == "png" else "jpg"
    scene.save(os.path.join(folder, f"{name}.{suffix}"), **options)


def _colour(rng: random.Random) -> tuple[int, int, int]:
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


def _texture(draw: ImageDraw.ImageDraw, rng: random.Random) -> None:
    colour, step, slope = _colour(rng), rng.randint(9, 40), rng.randint(-120, 120)
    for x in range(-abs(slope), SIZE[0] + abs(slope), step):
        draw.line([(x, 0), (x + slope, SIZE[1])], fill=colour, width=rng.randint(1, 5))


def _shape(draw: ImageDraw.ImageDraw, rng: random.Random) -> None:
    x, y = rng.randrange(SIZE[0]), rng.randrange(SIZE[1])
    w, h = rng.randint(20, 140), rng.randint(20, 140)
    box = (x - w // 2, y - h // 2, x + w // 2, y + h // 2)
    kind = rng.randrange(3)
    if kind == 0:
        draw.ellipse(box, fill=_colour(rng), outline=_colour(rng), width=4)
    elif kind == 1:
        draw.rectangle(box, fill=_colour(rng), outline=_colour(rng), width=4)
    else:
        corners = [(rng.randrange(SIZE[0]), rng.randrange(SIZE[1])) for _ in range(3)]
        draw.polygon(corners, fill=_colour(rng))
