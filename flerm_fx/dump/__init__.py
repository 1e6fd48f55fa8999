"""A dump tells what the compiler did to a model, as text, data, a picture or annotated code."""

from flerm_fx.dump.dump import Format, Level, check_dump, dump

__all__ = ["Format", "Level", "check_dump", "dump"]
