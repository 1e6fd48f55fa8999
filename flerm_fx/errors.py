"""This module has what flerm_fx raises and warns.

Every exception derives from :class:`FlermError`, so ``except flerm_fx.FlermError`` catches all of
them, and nothing else. Messages name the parameter or file, what was expected, what came, and what
to do next.
"""


def shown(value: object) -> str:
    r"""Return a value as text, in which what is not printable is an escape as Python writes it.

    That is all of Unicode's "other" (controls, formats, surrogates) and of its separators all but
    the space, as in :meth:`str.isprintable`.

    >>> print(shown("weight\n\x1b[31m"), shown("gewicht_größe"))
    weight\n\x1b[31m gewicht_größe
    """
    text = str(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class FlermError(Exception):
    r"""Every error that flerm_fx raises is a ``FlermError``.

    Its text is printable but for the ends of its lines: names in it may come from anywhere.

    >>> issubclass(MatchError, FlermError)
    True
    >>> print(FlermError("no parameter \x1b[31mred"))
    no parameter \x1b[31mred
    """

    def __str__(self) -> str:
        return "\n".join(map(shown, super().__str__().split("\n")))


class InputError(FlermError, ValueError):
    """Inputs, targets, updates or an option cannot be worked with."""


class CaptureError(FlermError):
    """The model cannot be run on the inputs, or has no graph where only a graph will do."""


class EstimateError(FlermError):
    """An update, a loss or an FSLR is NaN or infinite."""


class OptimizerError(FlermError):
    """An optimizer, or a loss, cannot be recorded or built again."""


class DivergenceError(FlermError):
    """The simulated steps of the start left the finite numbers."""


class MatchError(FlermError):
    """Target parameters have no counterpart in the base profile."""


class ProfileError(FlermError):
    """A profile is truncated, of another version, no profile, or cannot be saved."""


class MatchWarning(UserWarning):
    """Something speaks against matches that structure found; the message names each."""


class LawError(FlermError):
    """A scaling law cannot be fitted or read, or does not reach what is asked of it."""


class CaptureWarning(UserWarning):
    """The model does not export to a graph, so passes of its own measure it."""
