"""What measuring, compiling and matching cost, as ratios to the same model's training step.

``python -m benchmarks`` runs everything; ``--help`` lists the parts. Data flow one way: the parts
(``estimators``, ``compiling``, ``multipliers``, ``holding``, ``scaling``, ``precision``,
``matching``, ``emitters``) measure :mod:`~benchmarks.cases` and give :mod:`~benchmarks.results`,
which ``tables`` and ``picture`` turn into what ``report`` writes.
"""

import os

# The profiler, which memory is measured with, else prints a line about itself for every call; torch
# reads this when it is imported.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
