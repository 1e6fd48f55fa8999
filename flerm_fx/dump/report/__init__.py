"""The report shows a base profile, alone or beside a target, as one HTML file that opens
offline.
"""

from flerm_fx.dump.report.page import matching_to_html, to_html

__all__ = ["matching_to_html", "to_html"]
