"""What was recorded on the base."""
