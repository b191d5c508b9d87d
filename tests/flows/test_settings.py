import os
from pathlib import Path

import pytest

from flows.errors import SettingsError
from flows.settings import Settings, hide_password, load_settings, shown


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def test_flags_win_over_environment_over_file_over_defaults(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "settings.toml").write_text('model = "vgg16"\nworkers = 3\nbatch_size = 7\n')
    monkeypatch.setenv("LOOKALIKE_WORKERS", "5")
    monkeypatch.setenv("LOOKALIKE_BATCH_SIZE", "9")
    loaded = load_settings({"batch_size": 11, "device": None})
    settings = loaded.settings
    assert (settings.model, settings.workers, settings.batch_size) == ("vgg16", 5, 11)
    assert settings.device == "auto"
    assert loaded.origins["model"] == str(home / "settings.toml")
    assert loaded.origins["workers"] == "LOOKALIKE_WORKERS"
    assert loaded.origins["batch_size"] == "flag"
    assert loaded.origins["device"] == "default"
    assert set(loaded.origins) == set(Settings.model_fields)


def test_the_home_is_absolute_and_its_default_is_the_platforms(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_settings({"home": "here"}).settings.home == str(tmp_path / "here")
    monkeypatch.delenv("LOOKALIKE_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_settings().settings.home == str(tmp_path / "data" / "lookalike")
    assert load_settings({"home": "~/x"}).settings.home == str(tmp_path / "x")


def test_the_home_of_storage_carries_the_catalog_url(tmp_path: Path) -> None:
    settings = load_settings({"catalog_url": "postgresql://u@h/db"}).settings
    home = settings.home_()
    assert (home.path, home.catalog_url) == (str(tmp_path / "home"), "postgresql://u@h/db")


def test_a_named_file_may_set_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LOOKALIKE_HOME")
    file = tmp_path / "my.toml"
    file.write_text(f'home = "{tmp_path}/elsewhere"\n')
    monkeypatch.setenv("LOOKALIKE_SETTINGS", str(file))
    loaded = load_settings()
    assert loaded.settings.home == str(tmp_path / "elsewhere")
    assert loaded.origins["home"] == str(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modle = 'vgg16'", "unknown setting 'modle'"),
        ("model = ", "settings.toml: "),
        ("workers = 0", "workers = 0"),
        ("workers = 'many'", "workers = 'many'"),
        ("dtype = 'int8'", "dtype = 'int8'"),
        ("home = '/elsewhere'", "'home' can't be set"),
    ],
)
def test_what_is_wrong_in_the_file_is_one_line_that_names_it(
    home: Path, text: str, message: str
) -> None:
    file = home / "settings.toml"
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    line = str(caught.value)
    assert message in line
    assert str(file) in line
    assert "\n" not in line
    assert caught.value.exit_code == 2


def test_a_wrong_environment_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKALIKE_MAX_FAILURES", "2")
    with pytest.raises(SettingsError, match=r"max_failures = '2' \(LOOKALIKE_MAX_FAILURES\)"):
        load_settings()


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKALIKE_CATALOG_URL", "")
    loaded = load_settings()
    assert loaded.settings.catalog_url is None
    assert loaded.origins["catalog_url"] == "default"


def test_a_file_that_is_named_must_be_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LOOKALIKE_SETTINGS", str(tmp_path / "none.toml"))
    with pytest.raises(SettingsError, match=r"LOOKALIKE_SETTINGS names .*none\.toml"):
        load_settings()


def test_an_unreadable_file_is_said(home: Path) -> None:
    os.mkdir(home / "settings.toml")
    with pytest.raises(SettingsError, match=r"settings\.toml: .*directory"):
        load_settings()


def test_passwords_are_not_shown() -> None:
    url = "postgresql://me:secret@db.example:5433/pictures"
    settings = load_settings({"catalog_url": url}).settings
    assert shown(settings)["catalog_url"] == "postgresql://me:***@db.example:5433/pictures"
    assert shown(load_settings().settings)["catalog_url"] is None
    assert hide_password("postgresql://me@db/pictures") == "postgresql://me@db/pictures"
    assert hide_password("postgresql://me:p%40ss@/pictures") == "postgresql://me:***@/pictures"


def test_each_setting_is_described() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_what_works_on_chunks_can_be_set(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (load_settings().settings.runner, load_settings().settings.cluster) == ("thread", None)
    (home / "settings.toml").write_text('runner = "dask"\ncluster = "gpus.yaml"\n')
    assert load_settings().settings.cluster == "gpus.yaml"
    monkeypatch.setenv("LOOKALIKE_CLUSTER", "tcp://login:8786")
    loaded = load_settings()
    assert (loaded.settings.runner, loaded.settings.cluster) == ("dask", "tcp://login:8786")
    assert loaded.origins["cluster"] == "LOOKALIKE_CLUSTER"
    monkeypatch.setenv("LOOKALIKE_RUNNER", "ray")
    with pytest.raises(SettingsError, match=r"^runner = 'ray' \(LOOKALIKE_RUNNER\): .*'dask'$"):
        load_settings()
