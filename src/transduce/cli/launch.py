"""Start a command in several processes of this machine, on torch's own launcher (what ``torchrun`` calls)."""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn, Sequence

from transduce.core.errors import UserError

_ENDINGS = "TRANSDUCE_LAUNCH_FOLDER"
"""Set by :func:`launch` for the processes it starts: where they leave their exit codes. Not for users."""

RESTARTS = 3
"""How often the processes are started anew after one of them died; they go on from the last checkpoint."""


def is_first() -> bool:
    """This process speaks to the user: it is alone, or the first of those that ``torchrun`` started."""
    return os.environ.get("RANK", "0") == "0"


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run ``transduce`` with ``arguments`` in ``processes`` processes and return the command's exit code.

    A process that dies (killed, crashed) takes the others down, and all are started again, up to
    :data:`RESTARTS` times. A process that ends by itself, with success or with a sentence for the user, ends
    the command.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in ("torch.distributed.elastic", "torch.distributed.launcher"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # As many threads in all as one process would use.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // processes)))
    # Models may leave parameters out of a step, which torch is told; where one does not, every process would warn.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    with tempfile.TemporaryDirectory() as folder:
        os.environ[_ENDINGS] = folder
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            run_id=Path(folder).name,
            max_restarts=RESTARTS,
            monitor_interval=0.2,
        )
        try:
            elastic_launch(config, sys.executable)("-u", "-m", "transduce.cli.main", *arguments)
        except ChildFailedError:
            return max(_codes(folder), default=0) or _died()
        except Exception as problem:  # the launcher itself was told to stop
            if type(problem).__name__ != "SignalException":
                raise
            return max(_codes(folder), default=0) or 130
        return max(_codes(folder), default=0)


def _cores() -> int:
    """Cores that this process may use, where the system says so (Linux)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _died() -> int:
    raise UserError(
        f"A training process died {RESTARTS + 1} times (killed for memory, perhaps); go on from the last checkpoint "
        "with --resume, with a smaller --batch-symbols or fewer --devices."
    )


def _codes(folder: str) -> list[int]:
    return [json.loads(p.read_text()) for p in Path(folder).glob("*.json")]


def ending(code: int) -> int:
    """Hand the exit code over to :func:`launch` and end with success, lest the launcher start us again."""
    folder = os.environ.get(_ENDINGS)
    if folder is not None and os.path.isdir(folder):
        (Path(folder) / f"{os.environ.get('RANK', '0')}.json").write_text(json.dumps(code))
        code = 0
    if "RANK" in os.environ:
        leave(code)
    return code


def leave(code: int) -> NoReturn:
    """End one of several processes at once, without taking the interpreter down.

    gloo's threads outlive ``destroy_process_group`` as long as anything holds the group, and torch's own caches
    do. One that lets go of a tensor while the interpreter is taken down asks for a lock that is no longer given,
    and the process aborts behind work that was done, which the launcher takes for a death.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def others_ended(patience: float = 2.0) -> bool:
    """Under :func:`launch`: another process has ended by itself, so a lost connection is no failure."""
    folder = os.environ.get(_ENDINGS)
    until = time.monotonic() + patience
    while folder is not None and time.monotonic() < until:
        if _codes(folder):
            return True
        time.sleep(0.05)
    return False
