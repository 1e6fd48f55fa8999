"""``flerm-fx explore`` shows a compiled model in Google's Model Explorer."""

from pathlib import Path
from typing import Annotated

import typer

from flerm_fx.dump.model_explorer import MODEL, NODE_DATA
from flerm_fx.errors import InputError


def explore(
    folder: Annotated[
        Path, typer.Argument(help="What compile --format model-explorer --out wrote.")
    ],
    port: Annotated[int, typer.Option(help="Of the local server.", min=0, max=65535)] = 8080,
    open_browser: Annotated[
        bool, typer.Option("--open/--no-open", help="Open it in the browser.")
    ] = True,
) -> None:
    """Show the graph of a compiled model in Google's Model Explorer, until Ctrl-C.

    FSLR, multiplier and status are node data there, each with its colours.

    Example: flerm-fx explore compiled
    """
    missing = [name for name in (MODEL, *NODE_DATA) if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"{str(folder)!r} has no {', '.join(missing)}; name a folder that "
            "flerm-fx compile --format model-explorer --out FOLDER wrote"
        )
    try:
        import model_explorer
    except ModuleNotFoundError as error:
        raise InputError(
            f"flerm-fx explore needs Google's Model Explorer, and {error.name} is not installed; "
            "install it with: pip install 'flerm_fx[explorer]'"
        ) from error
    config = model_explorer.config().add_model_from_path(str(folder / MODEL))
    for name in NODE_DATA:
        config.add_node_data_from_path(str(folder / name))
    model_explorer.visualize_from_config(config, port=port, no_open_in_browser=not open_browser)
