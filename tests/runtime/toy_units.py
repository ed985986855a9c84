"""Units that take no time, and fail in every way that a unit can fail."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from raydd.errors import UserError
from raydd.runtime.work import Context


@dataclass(frozen=True)
class Toy:
    """Writes its name into `folder`; `behavior` says what happens before."""

    name: str
    folder: str
    behavior: str = "ok"
    cost: float = 1.0
    seconds: float = 0.0

    @property
    def file(self) -> Path:
        return Path(self.folder, f"{self.name}.txt")

    @property
    def tries(self) -> int:
        """How often it was begun."""
        path = Path(self.folder, f"{self.name}.tries")
        return len(path.read_text()) if path.exists() else 0

    def is_done(self) -> bool:
        return self.file.exists()

    def run(self, context: Context) -> None:
        with Path(self.folder, f"{self.name}.tries").open("a") as tries:
            tries.write("x")
        if self.behavior == "bug":
            raise ZeroDivisionError("a bug\nin two lines")
        if self.behavior == "user":
            raise UserError("this is wrong: do that")
        if self.behavior == "die" or (self.behavior == "die once" and self.tries == 1):
            os._exit(1)
        if self.behavior == "talk":
            context.say(f"{self.name} talks")
        time.sleep(self.seconds)
        self.file.write_text(self.name)


def toys(folder: Path, **behaviors: str) -> list[Toy]:
    """Toys by name and behavior; the first ones cost most, so they are begun first."""
    return [
        Toy(name, str(folder), behavior, cost=float(len(behaviors) - i))
        for i, (name, behavior) in enumerate(behaviors.items())
    ]
