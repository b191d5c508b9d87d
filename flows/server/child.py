"""Run Prefect's server for as long as the process that started it lives.

A script for a child process: its standard input is a pipe that the parent holds and never writes
to.  However the parent ends, SIGKILL and power cuts of its session included, the system closes the
pipe, and the server ends too.  The arguments are those of ``prefect server start``.
"""

import os
import runpy
import signal
import sys
import threading
import time

GRACE_S = 5.0
"""Time that the server has for writing down what it has received."""


def follow_parent() -> None:
    """Wait for the end of standard input, then end this process, at first gently."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=follow_parent, daemon=True).start()
    sys.argv = ["prefect", "server", "start", *sys.argv[1:]]
    runpy.run_module("prefect", run_name="__main__", alter_sys=True)
