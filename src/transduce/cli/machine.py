"""What the command line settles about the machine before it computes: threads, allocator, device."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from transduce.core.errors import UserError

if TYPE_CHECKING:
    import torch

CGROUP = Path("/sys/fs/cgroup")


def cpu_quota(root: Path = CGROUP) -> int | None:
    """Cores that a container may use, rounded up; None where no quota is set. torch counts the machine's
    cores and does not look at quotas, and threads beyond the quota only wait for each other."""
    try:
        if (root / "cpu.max").is_file():
            quota, period = (root / "cpu.max").read_text().split()[:2]
        else:
            quota = (root / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (root / "cpu" / "cpu.cfs_period_us").read_text()
        share = float(quota) / float(period)
    except (OSError, ValueError, ZeroDivisionError):  # "max" is no number: unlimited
        return None
    return math.ceil(share) if share > 0 else None


def set_up(device: str = "cpu", processes: int = 1) -> torch.device:
    """Keep large blocks in the process, use no more threads than cores are granted, and find the device: with
    "cuda" each of several ``processes`` gets one of its own."""
    import torch

    from transduce.core.heap import keep_large_blocks

    keep_large_blocks()
    quota = cpu_quota()
    if quota is not None and quota < torch.get_num_threads():
        torch.set_num_threads(quota)
    found = device_named(device)
    if found.type != "cuda" or found.index is not None:
        return found
    if processes > torch.cuda.device_count():
        raise UserError(
            f"torch sees {torch.cuda.device_count()} CUDA devices here; --devices {processes} needs as many."
        )
    if "LOCAL_RANK" in os.environ:
        found = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(found)
    return found


def device_named(name: str) -> torch.device:
    """A torch device; raises :class:`UserError` with one sentence why it cannot be used."""
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f'There is no device "{name}"; use cpu or cuda.')
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("torch sees no CUDA device here; leave --device out to use the CPU.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"torch sees {torch.cuda.device_count()} CUDA devices here, so there is no {name}.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("torch sees no MPS device here; leave --device out to use the CPU.")
    return device
