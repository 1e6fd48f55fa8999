"""``python -m flerm_fx``: the command line, as ``flerm-fx``."""

from flerm_fx.commands.cli import main

if __name__ == "__main__":
    main()
