"""Which parameters of two models answer to each other."""

from flerm_fx.align.aligning import Mapped, Match, OnUnmatched, align, unanswered

__all__ = ["Mapped", "Match", "OnUnmatched", "align", "unanswered"]
