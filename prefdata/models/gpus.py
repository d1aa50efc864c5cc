"""Which GPUs this machine's driver lists; importing this imports no torch."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

_SECONDS = 30
"""How long the driver's tool may take."""


def has_gpu() -> bool:
    """Whether the driver of this machine lists an NVIDIA GPU, and CUDA_VISIBLE_DEVICES does not hide them all."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    return not hidden and _listed(shutil.which("nvidia-smi"))


@cache
def _listed(tool: str | None) -> bool:
    if tool is None:  # some containers have the driver and not its tool
        return any(Path("/dev").glob("nvidia[0-9]*"))
    try:
        done = subprocess.run([tool, "-L"], capture_output=True, check=False, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and done.stdout.strip() != b""
