"""Runs that the report tests share."""

import pytest
from synthetic_runs import LEVEL, make_run

from raydd.store.run import Run


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> list[Run]:
    """Four methods at IPC 1 and 10, three distillation seeds (one for the ceiling)."""
    root = f"memory://{tmp_path_factory.mktemp('runs')}"
    made = []
    for method in LEVEL:
        for ipc in (1, 10):
            for seed in range(1 if method == "full" else 3):
                made.append(make_run(f"{root}/{method}-{ipc}-{seed}", method, ipc, seed))
    return made
