"""What can be wrong inside a file. Readers raise these; ``reader`` adds which file and makes them the user's error."""

from __future__ import annotations

from dlcalc.utils.printable import printable


class DamagedError(Exception):
    """The file is not what its format promises, or far larger than any checkpoint."""


class RefusedCallError(Exception):
    """The file's pickle names something that no checkpoint needs."""

    def __init__(self, callable_name: str) -> None:
        super().__init__(
            f"refused: its pickle calls {printable(callable_name, 200)}, which is not on the list of what a checkpoint "
            f"may call; nothing of it was run"
        )
