"""Units that take no time, and fail in every way that a unit can fail."""

import os
import signal
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


@dataclass(frozen=True)
class Steps:
    """Computes for `steps` steps, saves after each, and is killed while it computes one of `kills` the first time.

    Its steps are listed in `<name>.steps` as they are computed; its result is `<name>.bin`.
    """

    name: str
    folder: str
    steps: int = 8
    kills: tuple[int, ...] = ()
    cost: float = 1.0

    def path(self, suffix: str) -> Path:
        return Path(self.folder, f"{self.name}.{suffix}")

    def is_done(self) -> bool:
        return self.path("bin").exists()

    def computed(self) -> list[int]:
        return [int(line) for line in self.path("steps").read_text().split()]

    def run(self, context: Context) -> None:
        import torch

        from raydd.keyed import torch_rng
        from raydd.runtime.checkpoints import open_work
        from raydd.store.run import Run

        work = open_work(Run(self.folder), self.name, "hash", context, every_s=0.0)
        state = work.load_state()
        x = torch.zeros(64, 64) if state is None else state.tensors["x"]
        for step in range(state.step if state else 0, self.steps):
            with self.path("steps").open("a") as steps:
                steps.write(f"{step}\n")
            noise = torch.randn(64, 64, generator=torch_rng("steps", self.name, step))
            x = torch.tanh(x @ noise + noise)
            if step in self.kills and self.computed().count(step) == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            if step + 1 < self.steps and work.due():
                work.save_state({"x": x}, step + 1)
        self.path("bin").write_bytes(x.numpy().tobytes())
        work.delete_state()


def toys(folder: Path, **behaviors: str) -> list[Toy]:
    """Toys by name and behavior; the first ones cost most, so they are begun first."""
    return [
        Toy(name, str(folder), behavior, cost=float(len(behaviors) - i))
        for i, (name, behavior) in enumerate(behaviors.items())
    ]
