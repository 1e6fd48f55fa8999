"""Architectures at other depths per stage, each held to a rule of names.

python -m zoo.depth            # all of them
python -m zoo.depth nbeats     # one
"""
