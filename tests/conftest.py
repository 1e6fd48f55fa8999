"""Settings of the whole test run."""

import os

import torch

# pytest-xdist has a process per core already; more threads would only fight over the cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
