"""Several processes are started for a test, on this machine."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def launch(processes: int, *module: str) -> subprocess.CompletedProcess[str]:
    """Run a module, with its arguments, in several processes."""
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={processes}",
            "-m",
            *module,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
