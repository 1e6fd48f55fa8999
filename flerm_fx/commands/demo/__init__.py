"""The demo tunes a learning rate on a small language model and uses it on a wide one."""
