"""This room holds what was recorded on the base."""
