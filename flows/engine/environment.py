"""What Prefect is told and what it was told already, found out without importing it.

Importing Prefect takes 2 s.  Whether a run goes through it is therefore read from the same places,
in the same order, that Prefect reads: environment, ``.env``, ``prefect.toml``, ``pyproject.toml``,
the active profile.
"""

import os
import tomllib
from collections.abc import Mapping
from typing import Any

API_URL = "PREFECT_API_URL"

TAMED = {
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",  # 20 s fail on a loaded machine
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",  # with 1, most runs are lost
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_LOGGING_LEVEL": "WARNING",  # our own progress says what goes on
    "PREFECT_TASKS_DEFAULT_NO_CACHE": "true",  # the catalog knows what is done
}
"""What Prefect is told where the user has said nothing."""


def tame_environment() -> None:
    """Set `TAMED` in the environment, but for what it or the active profile sets already.

    To be called before Prefect is imported, which reads its settings then.
    """
    profile = _active_profile()
    for name, value in TAMED.items():
        if name not in profile:
            os.environ.setdefault(name, value)


def configured_api() -> str | None:
    """Return the URL of the Prefect API that the user has configured, or None."""
    url = (
        os.environ.get(API_URL)
        or _dotenv().get(API_URL)
        or _at(_read_toml("prefect.toml"), "api", "url")
        or _at(_read_toml("pyproject.toml"), "tool", "prefect", "api", "url")
        or _active_profile().get(API_URL)
    )
    return str(url) if url else None


def _active_profile() -> Mapping[str, Any]:
    path = os.environ.get("PREFECT_PROFILES_PATH")
    if not path:
        home = os.environ.get("PREFECT_HOME") or "~/.prefect"
        path = os.path.join(os.path.expanduser(home), "profiles.toml")
    data = _read_toml(path)
    name = os.environ.get("PREFECT_PROFILE") or str(data.get("active", ""))
    profile = _at(data, "profiles", name)
    return profile if isinstance(profile, dict) else {}


def _dotenv() -> Mapping[str, Any]:
    if not os.path.isfile(".env"):
        return {}
    from dotenv import dotenv_values

    return dotenv_values(".env")


def _read_toml(path: str) -> Mapping[str, Any]:
    """Return the file's tables; none where it is missing or damaged, which Prefect itself tells."""
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except (OSError, ValueError):
        return {}


def _at(tables: Any, *keys: str) -> Any:
    for key in keys:
        if not isinstance(tables, dict):
            return None
        tables = tables.get(key)
    return tables
