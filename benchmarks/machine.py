"""The machine that a run is on."""

import os
import platform
from pathlib import Path

import torch

from benchmarks.results import Machine
from benchmarks.settings import Settings


def machine(settings: Settings) -> Machine:
    """Its description."""
    cuda = settings.device.type == "cuda"
    return Machine(
        platform=f"{platform.system()} {platform.machine()}",
        processor=_processor(),
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        device=torch.cuda.get_device_name(settings.device) if cuda else "cpu",
        python=platform.python_version(),
        torch=torch.__version__,
        quick=settings.quick,
    )


def _processor() -> str:
    """The processor's name, where the system tells."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
