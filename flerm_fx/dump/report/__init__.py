"""A base profile, alone or beside a compiled target, as one HTML file that opens offline."""

from flerm_fx.dump.report.page import to_html

__all__ = ["to_html"]
