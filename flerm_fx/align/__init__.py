"""This room finds which parameters of two models answer to each other."""

from flerm_fx.align.aligning import Match, OnUnmatched, align, unanswered
from flerm_fx.align.doubts import Doubt, doubts_of
from flerm_fx.align.patterns import Mapped

__all__ = ["Doubt", "Mapped", "Match", "OnUnmatched", "align", "doubts_of", "unanswered"]
