"""Matches and FSLRs become multipliers in this room."""
