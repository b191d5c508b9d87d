"""A catalog whose files are known by heart: which image each holds, and nothing lies on a disk."""

import os
from collections.abc import Sequence
from typing import Any

from sqlalchemy import insert

from storage.before import image_ids
from storage.catalog import Catalog
from storage.database import insert_into
from storage.roots import RootInfo, add_root
from storage.scan import Signature
from storage.spaces import SpaceInfo, ensure_space
from storage.tables import File, Image
from tests.storage.job import digest_of

SIG = Signature(10, 1_000, 2_000, 3)


def other_space(catalog: Catalog) -> SpaceInfo:
    """Return a second space, which decodes in another way than the first one."""
    return ensure_space(
        catalog,
        name="other",
        spec={"dim": 8, "dtype": "float32", "decode_version": 2, "architecture": "other"},
        request={},
        key="other",
    )


def root_at(catalog: Catalog, path: os.PathLike[str]) -> RootInfo:
    """Return a root, whose folder is made."""
    os.makedirs(path, exist_ok=True)
    return add_root(catalog, os.fsencode(path))


def digest(image: int) -> bytes:
    """Return the digest of an image by its number."""
    return digest_of(b"image %d" % image)


def enter_copies(
    catalog: Catalog,
    root: RootInfo,
    images: Sequence[int | None],
    paths: Sequence[bytes] | None = None,
    mtimes: Sequence[int] | None = None,
) -> list[int]:
    """Enter live files by the images that they are known to hold; return their ids, in order.

    None is a file that has to be read.
    """
    paths = paths or [b"%06d.jpg" % i for i in range(len(images))]
    mtimes = mtimes or [SIG.mtime_ns] * len(images)
    digests = {digest(image) for image in images if image is not None}
    new = [{"digest": item, "size_bytes": 10, "first_seen_at": 0.0} for item in sorted(digests)]
    with catalog.write() as conn:
        if new:
            conn.execute(insert_into(conn, Image).on_conflict_do_nothing(), new)
        ids = image_ids(conn, digests)
        rows = [
            _file(root, path, None if image is None else ids[digest(image)], mtime)
            for path, image, mtime in zip(paths, images, mtimes, strict=True)
        ]
        entered = insert(File).returning(File.id, sort_by_parameter_order=True)
        return list(conn.execute(entered, rows).scalars())


def _file(root: RootInfo, path: bytes, image_id: int | None, mtime_ns: int) -> dict[str, Any]:
    stat = {**SIG._asdict(), "mtime_ns": mtime_ns}
    return {
        "root_id": root.id,
        "path": path,
        "display": path.decode("utf-8", "replace"),
        "state": "live",
        "first_seen_at": 0.0,
        "image_id": image_id,
        "trusted": image_id is not None,
        **{f"seen_{name}": value for name, value in stat.items()},
        **{f"digest_{name}": value if image_id else None for name, value in stat.items()},
    }
