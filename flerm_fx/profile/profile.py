"""The base profile holds what was recorded on the small model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flerm_fx.boundary.notebook import folded_table
from flerm_fx.errors import InputError
from flerm_fx.profile.averaging import averaged
from flerm_fx.profile.fields import ProfileFields
from flerm_fx.profile.file import PathLike, loaded, write

LOAD = "; read a file with flerm_fx.BaseProfile.load(path)"
"""What to do with what is no profile."""


@dataclass(frozen=True, eq=False)
class BaseProfile(ProfileFields):
    """A profile holds the base model's FSLRs, and how to measure them again elsewhere.

    Attributes:
        parameters: names of the trainable parameters, in execution order.
        shapes: their shapes.
        start: their FSLRs at the start of training, per unit of learning rate.
        trajectory: their FSLRs during the recorded run.
        graph: the parameter graph.
        optimizers: the update rules and learning rates of the recorded run, one of each for every
            parameter group, be they of one optimizer or of several, as of AdamW beside Muon; and
            the group that each parameter is in
            (:class:`flerm_fx.recipe.optimizers.Optimizers`). :attr:`optimizer` and
            :attr:`learning_rate` are those of the first group that has a rate above 0.
        settle: simulated steps to the start.
        warmup: over how many of them the rate rises in equal parts.
        moments: what was measured at each of :func:`flerm_fx.recipe.schedule.settling_steps`, by
            step: FSLRs where the start is the mean over it, the size of the outputs, and that of
            the first updates (:class:`flerm_fx.profile.moment.Moment`); empty for ``settle=0``.
            :attr:`settling`, :attr:`output_rms` and :attr:`update_sizes` are its columns.
        resolve_after: further simulated steps before the late start; 0 if it was turned off.
        loss: name in ``torch.nn.functional``, or ``"output.loss"`` for one that the model returns;
            ``None`` for a loss that the caller passed.
        method: estimator asked for, such as ``"auto"``.
        rtol: relative error asked of it.
        seed: seed of its random draws.
        pool: the probe pool, ``(inputs, targets)`` batches; FSLRs are measured on the first.
        training: whether the model was in training mode.
        late: FSLRs of all parameters ``resolve_after`` steps after the start, where one that is
            used had an FSLR of exactly 0 at the start; else empty.
        model: name of the base's class; empty in files from before it was kept.
        versions: of the file format, flerm_fx and torch.

    Raises:
        ProfileError: if the fields contradict one another, or a number is not finite.
        InputError: if the pool holds something a file cannot.

    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> import networkx as nx
    >>> import torch
    >>> from flerm_fx.probe.estimate import Estimate
    >>> from flerm_fx.profile.trajectory import Trajectory
    >>> from flerm_fx.recipe.optimizers import Optimizers
    >>> from flerm_fx.recipe.update_rule import UpdateRule
    >>> graph = nx.DiGraph()
    >>> graph.add_node("weight")
    >>> profile = BaseProfile(
    ...     parameters=("weight",),
    ...     shapes={"weight": (2, 3)},
    ...     start={"weight": Estimate(0.5, 0.0, "exact", 0)},
    ...     trajectory=Trajectory(),
    ...     graph=graph,
    ...     optimizers=Optimizers((UpdateRule.from_name("AdamW"),), (0.01,)),
    ...     settle=0,
    ...     loss="mse_loss",
    ...     method="auto",
    ...     rtol=0.05,
    ...     seed=0,
    ...     pool=((torch.zeros(4, 3), torch.zeros(4, 2)),),
    ...     training=True,
    ... )
    >>> with TemporaryDirectory() as folder:
    ...     profile.save(Path(folder) / "base.safetensors")
    ...     BaseProfile.load(Path(folder) / "base.safetensors").start["weight"].value
    0.5
    """

    def way_from(self, output_rms: Mapping[int, float], step: int) -> float:
        r"""Return how much further a target has to go at a settling step than the base had.

        .. math:: \rho_t = \min(\max(r_t / b_t,\ 1),\ E), \quad
                  E = \max\Big(\frac{r_0}{\max(b_0, b_T)},\ 1\Big)

        with r and b the root mean squares of the target's and the base's outputs at the settling
        steps 0 to T. A model whose outputs begin larger than training makes them has to undo them
        first: while they are larger than the base's its steps are to be as much larger, up to the
        excess E that it began with. Without one, :math:`\rho` is 1.

        Args:
            output_rms: of the target, at steps up to this one.
            step: one of the settling steps.

        Raises:
            InputError: if that step was not recorded.

        Example::

            >>> import flerm_fx, torch
            >>> _ = torch.manual_seed(0)
            >>> model, x, y = torch.nn.Linear(4, 3), torch.randn(8, 4), torch.randint(3, (8,))
            >>> adam = torch.optim.Adam(model.parameters(), lr=1e-3)
            >>> profile = flerm_fx.record(model, adam, x, y, settle=2).profile
            >>> largest = max(profile.output_rms[0], profile.output_rms[-1])
            >>> profile.way_from({0: largest}, 0), profile.way_from({0: 3 * largest}, 0) > 2.9
            (1.0, True)
        """
        if step not in self.sized:
            raise InputError(f"step {step} was not recorded; there are {self.sized}")
        base = dict(zip(self.sized, self.output_rms, strict=True))
        usual = max(base[0], self.output_rms[-1])
        excess = output_rms[0] / usual if usual else 1.0
        larger = output_rms[step] / base[step] if base[step] else excess
        return min(max(larger, 1.0), max(excess, 1.0))

    def save(self, path: PathLike) -> None:
        """Write the profile to one ``.safetensors`` file, whole or not at all.

        The file is written under a temporary name beside ``path``, flushed to the disk and renamed,
        so that whatever interrupts it, a file already at ``path`` stays as it was; its mode stays.

        Args:
            path: of the file.

        Raises:
            ProfileError: if the file cannot be written, ``path`` holds anything but a regular file
                of one name, or text of the profile has characters that are not printable, which
                :meth:`load` would refuse.
            InputError: if ``path`` is no path.
        """
        write(self, path)

    @classmethod
    def load(cls, path: PathLike) -> BaseProfile:
        """Return the profile in a file, all of which is checked, and none of it run.

        Args:
            path: of the file.

        Raises:
            ProfileError: if the file is missing, truncated, no profile, of another format, or
                contradicts itself; or if text in it has characters that are not printable, such as
                the end of a line in a parameter's name. What the pool holds may be any text.
            InputError: if ``path`` is no path.
        """
        return loaded(path, cls)

    @classmethod
    def mean(cls, profiles: Sequence[BaseProfile]) -> BaseProfile:
        r"""Return the profile of several recordings of one base model, one for each seed.

        Outputs combine as their root mean square, and FSLRs as the geometric mean,

        .. math:: \mathrm{FSLR}_l = \exp \frac1n \sum_{i=1}^n \log \mathrm{FSLR}_{l,i},

        because they enter multipliers as ratios: the multipliers of the mean are then the geometric
        mean of the seeds' multipliers, whichever side of the ratio the base is on. A parameter
        whose FSLR is 0 under some seed has no logarithm there, and takes the arithmetic mean. Late
        FSLRs are kept if every profile has them; otherwise no parameter in use is 0 under every
        seed.

        The standard error is that of a mean over seeds, from the spread of the n values, which
        contains each one's own error, and not less than those alone would give:
        :math:`\max(s^2 / n,\ \sum_i \sigma_i^2 / n^2)^{1/2}`, in logarithms (relative errors) for
        the geometric mean. One profile comes back as it is. Pool and seed are the first one's.

        Args:
            profiles: at least one, all of one model under one procedure.

        Raises:
            InputError: if there is no profile, something else is among them, or two differ in
                parameters, shapes, parameter graph, steps or any setting other than the seed.
        """
        return averaged(profiles, cls)

    @property
    def settled(self) -> str:
        """The rate at which the start was measured, in words."""
        return f"{'settled' if self.settle else 'first step'} at {self.learning_rate:.3g}"

    def _repr_html_(self) -> str:
        rows = [
            (name, "×".join(map(str, self.shapes[name])) or "()", f"{self.start[name].value:.4g}")
            for name in self.parameters
        ]
        return folded_table(repr(self), ("parameter", "shape", "FSLR"), rows, {"FSLR"})

    def __repr__(self) -> str:
        return (
            f"BaseProfile({len(self.parameters)} parameters, {self.optimizer.source} at lr "
            f"{self.learning_rate:g}, settle {self.settle}, loss {self.loss or 'of the caller'}, "
            f"trajectory of {len(self.trajectory)} steps)"
        )
