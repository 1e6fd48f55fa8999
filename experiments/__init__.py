"""Whether learning rates transfer: sweeps on real data, beside muP and standard training.

``python -m experiments run`` trains, ``python -m experiments report`` makes tables and pictures of
what was trained. See docs/results.md.
"""
