"""A learning rate tuned on a small language model, used on a wide one."""
