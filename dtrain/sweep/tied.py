"""`python -m dtrain.sweep.tied PID COMMAND...`: the command, ended by the kernel when its parent dies.

Whoever kills a sweep means its trials, too. They are saved first, as by any SIGTERM.
"""

import ctypes
import os
import signal
import sys

SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2), which stays through exec


def main(parent: str, *command: str) -> None:
    """Become the command, unless the process of this number has ended already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0)
    if os.getppid() == int(parent):
        os.execvp(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
