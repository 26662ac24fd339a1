"""The program: `dtrain`, `python -m dtrain`, and `accelerate launch dtrain` in the folder that holds it."""

import os
import sys

if not __package__:
    # `python dtrain` and `accelerate launch dtrain` put the folder of this file on the path instead of the
    # folder above it: `import dtrain` would fail, and a file in here would stand for a module of its name.
    _folder = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [os.path.dirname(_folder), *(path for path in sys.path if os.path.abspath(path) != _folder)]


def main() -> int:
    """Run the command line that this process was started with; return its exit code."""
    from dtrain.cli.app import main as run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
