"""What goes wrong for test_faults.py, and a dataset where it does; without torch, as workers import it."""

import ctypes
import os
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np

FETCHED = 11  # examples that a rank, or its one worker, has fetched when update 3 comes


def is_rank(rank: int) -> bool:
    """Whether this process goes wrong; asked late, as processes are forked with modules loaded."""
    return os.environ.get("RANK") == str(rank)


def go_wrong(fault: str) -> None:
    """What the recipe says, noting when."""
    Path(os.environ["FAULT_MARK"]).touch()
    match fault:
        case "exception":
            raise ZeroDivisionError("this rank divides by zero")
        case "hang":
            time.sleep(1000)
        case "lock":
            ctypes.PyDLL(None).sleep(1000)  # unlike CDLL, it keeps Python's lock
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            sys.exit(0)
        case "memory":
            import torch

            torch.empty(1 << 50)
        case "interrupt":
            raise KeyboardInterrupt
        case "files":  # as good as a full disk
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


class Numbers:
    """Ones, until it goes wrong in the process that fetches: the trainer or its worker."""

    def __init__(self, fault: str, rank: int):
        self.fault, self.is_faulty, self.fetched = fault, is_rank(rank), 0

    def __len__(self) -> int:
        return 18

    def __getitem__(self, index: int) -> np.ndarray:
        self.fetched += 1
        if self.is_faulty and self.fetched == FETCHED:
            go_wrong(self.fault)
        return np.ones(4, np.float32)
