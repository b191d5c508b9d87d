"""What a command can refuse before it reaches a room that has errors of its own.

::

    FlowError            2  what was asked for can't be done as asked
    ├── SettingsError    2  a setting has a wrong value, or an unknown name
    ├── WorkerLost       5  the worker that had a step is gone
    └── ClusterLost      5  the cluster is gone, or takes no steps
    Stopped            130  a step was left because the run is to stop; no trouble
"""


class FlowError(Exception):
    """What was asked for can't be done as asked.  The message is one line that says what to do."""

    exit_code = 2


class SettingsError(FlowError):
    """A setting has a wrong value or an unknown name; the message says where it was found."""


class WorkerLost(FlowError):
    """The worker that had a step is gone, and nobody else has the step."""

    exit_code = 5


class ClusterLost(FlowError):
    """The cluster is gone, or takes no steps; what was committed is kept."""

    exit_code = 5


class Stopped(Exception):
    """A step was left in its middle because the run is to stop; what was finished is kept."""

    exit_code = 130


NO_ROOT = "no root is known yet: `lookalike index DIRECTORY`"
