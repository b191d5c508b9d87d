"""``lookalike forget``: what lies outside of the store's home."""

import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import select

from flows.cli import cli
from search.thumbnail_files import thumbnails_folder
from search.thumbnails import Thumbnails
from storage.catalog import Catalog
from storage.errors import RootError
from storage.home import Home
from storage.tables import File
from tests.search.stores import Store, draw


def test_thumbnails_of_what_is_forgotten_go_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for i in range(3):
        draw(tmp_path / "pictures" / f"{i}.png", i)
    with Catalog.open(Home(str(tmp_path / "home")), write=True) as catalog:
        store = Store(catalog)
        store.index(tmp_path / "pictures", store.space())
        store.close()
        folder = thumbnails_folder(catalog.store_id)
        with Thumbnails(catalog, folder) as thumbnails, catalog.read() as conn:
            for image_id in conn.execute(select(File.image_id)).scalars().all():
                thumbnails.of(image_id, 160)

    def kept() -> int:
        return sum(len(files) for _, _, files in os.walk(folder))

    def forget(name: str) -> None:
        path = str(tmp_path / "pictures" / name)
        done = CliRunner().invoke(cli, ["forget", path], catch_exceptions=False)
        assert done.stdout.startswith("forgotten: 1 image, 1 file, ")

    assert kept() == 3
    forget("0.png")
    assert kept() == 2
    with Catalog.open(Home(str(tmp_path / "home")), write=True) as catalog:
        from storage.forget import forget as forget_in_store
        from storage.leases import start_run

        place = os.fsencode(tmp_path / "pictures" / "1.png")
        forget_in_store(catalog, start_run(catalog, "forget"), [place])
    assert kept() == 2  # as where the command was killed before it came to them
    with pytest.raises(RootError):
        forget("1.png")
    assert kept() == 1
