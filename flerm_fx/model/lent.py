"""A model lends its own weights to a calculation that changes them; they are put back bit for
bit.
"""

import functools
import tempfile
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from flerm_fx.boundary.interrupts import deferred_interrupt
from flerm_fx.errors import InputError
from flerm_fx.model.standing import places


class Lent:
    """A ``Lent`` has parameters in the memory of a model's own and in their places, while a block
    lasts.

    No gradient, hook or reducer of the model's own parameters sees what is done with those that
    stand in for them. Afterwards weights and places are bit for bit what they were, however the
    block ends. It may be entered twice, as in ``with lent, lent:``, so that an interrupt on the way
    to the end of the inner block is met by that of the outer one.

    Args:
        model: the module that runs.
        parameters: the parameters to lend, by name.
        offload: whether what is put back is kept elsewhere meanwhile: of a device's tensors on the
            CPU, of the CPU's in a temporary file.

    Attributes:
        parameters: what stands in for them, by name.

    Raises:
        InputError: the temporary file cannot be written.

    >>> layer = nn.Linear(2, 2, bias=False)
    >>> before, own = layer.weight.detach().clone(), layer.weight
    >>> with Lent(layer, {"weight": own}, offload=True) as lent:
    ...     with torch.no_grad():
    ...         _ = lent.parameters["weight"].zero_()
    ...     own.any().item(), layer.weight is own
    (False, False)
    >>> torch.equal(own, before), layer.weight is own
    (True, True)
    """

    def __init__(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], *, offload: bool = False
    ) -> None:
        self.parameters = {n: type(p)(p.data, p.requires_grad) for n, p in parameters.items()}
        lent = {id(parameters[name]): leaf for name, leaf in self.parameters.items()}
        self._places = places(model, lent)
        self._file = _file() if offload else None
        self._undo = [_kept(parameter.data, self._file) for parameter in parameters.values()]

    def __enter__(self) -> "Lent":
        try:
            for held_by, name, _, instead in self._places:
                held_by[name] = instead
            return self
        except BaseException:  # an interrupt on the way in
            self._put_back()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            with deferred_interrupt():
                self._put_back()
        finally:
            self._put_back()

    def _put_back(self) -> None:
        """Put back what is left to be put back."""
        for held_by, name, held, _ in self._places:
            held_by[name] = held
        while self._undo:
            self._undo[-1]()
            self._undo.pop()
        if self._file is not None:
            self._file.close()


def _file() -> Any:
    """Return a temporary file that closes itself; one without a name would warn of it."""
    return tempfile.NamedTemporaryFile()


def _kept(tensor: Tensor, file: Any) -> Callable[[], None]:
    """Keep what a tensor holds, where there is a file elsewhere; puts it back when called."""
    if file is None:
        return functools.partial(_copy, tensor.clone(), tensor)
    if tensor.device.type != "cpu":
        return functools.partial(_copy, tensor.cpu(), tensor)
    at = file.tell()
    try:
        file.write(tensor.contiguous().view(-1).view(torch.uint8).numpy())
        file.flush()
    except OSError as error:
        raise InputError(
            f"offload=True keeps weights in a temporary file in {tempfile.gettempdir()!r}, which "
            f"cannot take them: {error}; set the environment variable TMPDIR to a folder on a disk "
            "with as much room as the weights take, or leave offload out"
        ) from error
    return functools.partial(_read, file, at, tensor)


def _copy(source: Tensor, target: Tensor) -> None:
    with torch.no_grad():
        target.copy_(source)


def _read(file: Any, at: int, tensor: Tensor) -> None:
    buffer = torch.empty(tensor.numel() * tensor.element_size(), dtype=torch.uint8)
    file.seek(at)
    file.readinto(buffer.numpy())
    _copy(buffer.view(tensor.dtype).view(tensor.shape), tensor)
