"""Python imports this at its start wherever this folder is on PYTHONPATH: Ray's workers are forked, see there."""

import sys

if any(name.endswith(("workers/setup_worker.py", "workers/default_worker.py")) for name in sys.orig_argv[1:4]):
    import forked_workers

    forked_workers.hand_over()
