"""``lookalike spaces use``: what a person is told before searches find less."""

from pathlib import Path

import pytest

from storage.catalog import Catalog
from storage.home import Home
from storage.spaces import get_space
from tests.flows.terminal import lookalike
from tests.search.stores import Store, draw


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Return a folder with a store in ``home``: ``full`` is current, ``half`` and ``none`` wait."""
    for i in range(10):
        draw(tmp_path / "pictures" / "a" / f"{i}.png", i)
        draw(tmp_path / "pictures" / "b" / f"{i}.png", 10 + i)
    with Catalog.open(Home(str(tmp_path / "home")), write=True) as catalog:
        store = Store(catalog)
        root = tmp_path / "pictures"
        store.index(root, store.space("full"))
        (root / "b").rename(tmp_path / "away")
        store.index(root, store.space("half"))
        store.space("none")
        store.close()
    return tmp_path


def use(shop: Path, *args: str, code: int = 0) -> tuple[str, str, str]:
    """Return stdout, stderr and the space that is then current."""
    done = lookalike("spaces", "use", *args, "--home", str(shop / "home"), code=code)
    with Catalog.open(Home(str(shop / "home")), write=False) as catalog:
        return done.stdout, done.stderr, get_space(catalog).name


def test_far_fewer_vectors_are_a_warning_and_none_a_refusal(shop: Path) -> None:
    assert use(shop, "half") == (
        "space half is the current one\n",
        "lookalike: space half has 10 vectors, full has 20: searches find fewer images until "
        "`lookalike index --space half` has extracted the rest\n",
        "half",
    )
    assert use(shop, "full") == ("space full is the current one\n", "", "full")
    out, err, current = use(shop, "none", code=2)
    assert (out, current) == ("", "full")
    assert err == (
        "lookalike: the space 'none' has no vectors, and searches would find nothing: fill it with "
        "`lookalike index --space none` first, or use --force\n"
    )
    out, err, current = use(shop, "none", "--force")
    assert (out, current) == ("space none is the current one\n", "none")
    assert "space none has 0 vectors, full has 20" in err
