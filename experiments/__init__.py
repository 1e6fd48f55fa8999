"""Whether learning rates transfer: sweeps on real data, beside muP and standard training.

``python -m experiments`` trains what is missing, and makes tables and pictures of what was trained;
with ``--report`` it does the latter alone. See docs/results.md.
"""
