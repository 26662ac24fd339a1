"""The `wandb/` folder of a run: where W&B shows it, and the commands that show and send it."""

import shlex
from pathlib import Path

URL = "url.txt"  # W&B itself keeps the address nowhere but in its logs
LONGEST = 2_000  # characters of an address


def how_to_look(folder: Path) -> list[str]:
    """Command lines that show the run in `folder` in the terminal and, if it was offline, upload it.

    Several lives of the run are found by one command each, and uploaded in their order.
    """
    place = shlex.quote(str(folder / "wandb"))
    commands = [f"wandb leet {place}"] if any((folder / "wandb").glob("*run-*/*.wandb")) else []
    return [*commands, *([f"wandb sync {place}"] if was_offline(folder) else [])]


def was_offline(folder: Path) -> bool:
    """Whether something of the run in `folder` was not sent when it was tracked."""
    return any((folder / "wandb").glob("offline-run-*/*.wandb"))


def note_url(folder: Path, url: str) -> None:
    """Keep the address at which W&B shows the run in `folder`."""
    (folder / "wandb").mkdir(exist_ok=True)
    (folder / "wandb" / URL).write_text(f"{url}\n", encoding="utf-8")


def url_of(folder: Path) -> str | None:
    """That address; None of a run that was never online."""
    try:
        with (folder / "wandb" / URL).open(encoding="utf-8") as file:
            return file.read(LONGEST).strip() or None
    except (OSError, UnicodeDecodeError):
        return None
