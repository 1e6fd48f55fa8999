"""A state of a recorder or matcher is checked as a whole before any of it is used."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from flerm_fx.boundary.options import described, flag, integer, number
from flerm_fx.errors import InputError
from flerm_fx.probe.estimate import Estimate, estimates

T = TypeVar("T")


class State:
    """A ``State`` reads what a ``state_dict()`` returned, part by part.

    Args:
        whose: ``"recorder"`` or ``"matcher"``, for messages.
        given: the state.
        like: the present state of the one that is to take it over, which has the same keys.
        names: the parameters that it has to be of.

    Raises:
        InputError: here, keys that are missing or unknown; in the methods, a part of another form
            or out of range. The message names the part.

    >>> State("recorder", {}, {"step": 0}, ["weight"])
    Traceback (most recent call last):
    flerm_fx.errors.InputError: the recorder's state lacks 'step'; expected what its ...
    """

    def __init__(
        self, whose: str, given: Any, like: Mapping[str, Any], names: Collection[str]
    ) -> None:
        self._whose = whose
        self._names = set(names)
        expected = "expected what its state_dict() returns in this version of flerm_fx"
        if not isinstance(given, Mapping):
            raise InputError(f"the {whose}'s state is {described(given)}; {expected}")
        missing, unknown = like.keys() - given.keys(), given.keys() - like.keys()
        for verb, odd in (("lacks", missing), ("has an unknown", unknown)):
            if odd:
                keys = ", ".join(sorted(map(repr, odd)))
                raise InputError(f"the {whose}'s state {verb} {keys}; {expected}")
        self._given = given

    def step(self) -> int:
        """Return the steps of the run."""
        return integer(self._what("step"), self._given["step"], 0)

    def waiting(self) -> bool:
        """Tell whether a measurement is due."""
        return flag(self._what("waiting"), self._given["waiting"])

    def part(self, key: str, read: Callable[[str, Any], T]) -> T:
        """Return what a function makes of what a part is called and the part itself."""
        return read(self._what(key), self._given[key])

    def each(self, key: str, read: Callable[[str, Any], T]) -> list[T]:
        """Return a list, each item of it read by a function of what it is called and itself."""
        what = self._what(key)
        return [read(f"an item of {what}", value) for value in items(what, self._given[key])]

    def by(self, key: str, read: Callable[[str, Any], T]) -> dict[Any, T]:
        """Return a dict, each value of it read so."""
        what, given = self._what(key), self._given[key]
        if not isinstance(given, Mapping):
            raise InputError(f"{what} must be a dict, got {described(given)}")
        return {name: read(f"{name!r} of {what}", value) for name, value in given.items()}

    def estimates(self, what: str, value: Any) -> dict[str, Estimate]:
        """FSLRs of all parameters."""
        return estimates(self.of_all(what, value), what)

    def some_estimates(self, what: str, value: Any) -> dict[str, Estimate]:
        """FSLRs of some of them."""
        return estimates(self.of_some(what, value), what)

    def multipliers(self, what: str, value: Any) -> dict[str, float]:
        """Return the multipliers of all parameters."""
        given = self.of_all(what, value)
        return {name: number(f"{name!r} of {what}", m, above=0) for name, m in given.items()}

    def of_all(self, what: str, value: Any) -> Mapping[str, Any]:
        """Return a dict with an entry for each parameter."""
        return self._of(what, value, lambda given: given ^ self._names)

    def of_some(self, what: str, value: Any) -> Mapping[str, Any]:
        """Return a dict with entries for some parameters."""
        return self._of(what, value, lambda given: given - self._names)

    def _of(
        self, what: str, value: Any, odd_of: Callable[[set[Any]], set[Any]]
    ) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            raise InputError(f"{what} must be a dict by parameter, got {described(value)}")
        if odd := odd_of(set(value)):
            names = ", ".join(sorted(map(repr, odd))[:8])
            raise InputError(
                f"the {self._whose}'s state and the model differ in {names}; load it for the model "
                "that it was saved with"
            )
        return value

    def _what(self, key: str) -> str:
        return f"{key} in the {self._whose}'s state"


def a_step(what: str, value: Any) -> int:
    """Return the number of a step."""
    return integer(what, value, 0)


def a_rate(what: str, value: Any) -> float:
    """Return a learning rate of a step that was measured."""
    return number(what, value, above=0)


def a_loss(what: str, value: Any) -> float:
    """Return the loss at a step, which need not be finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"a loss in {what} must be a number, got {described(value)}")
    return float(value)


def items(what: str, value: Any, length: int | None = None) -> list[Any]:
    """Return a list or tuple, of a certain length if one is given."""
    if not isinstance(value, list | tuple) or length not in (None, len(value)):
        count = "" if length is None else f" of {length} items"
        raise InputError(f"{what} must be a list{count}, got {described(value)}")
    return list(value)
