"""Lightning's ``Trainer`` records and matches by these callbacks."""

from collections.abc import Callable
from typing import Any

import lightning as L
from torch import nn

from flerm_fx.assign.predictor import Predictor, profile_and_law
from flerm_fx.boundary.options import function
from flerm_fx.integrations import begun, checked_options, make_ready, path_or_none
from flerm_fx.profile.file import PathLike
from flerm_fx.profile.profile import BaseProfile
from flerm_fx.recipe.pool import Pool
from flerm_fx.training.matcher import Matcher
from flerm_fx.training.matching import match
from flerm_fx.training.recorder import Recorder
from flerm_fx.training.recording import record

Pick = Callable[[L.LightningModule], nn.Module]
"""Picks the module whose ``forward`` takes the probe inputs."""


class _Attached(L.Callback):
    """An ``_Attached`` hangs on hooks of the run's optimizers, and its state is part of
    checkpoints.
    """

    def __init__(self, module: Pick | None) -> None:
        self.attached: Any = None
        if module is not None:
            function("module", module, "from the LightningModule to the module that is measured")
        self._module = module
        self._state: dict[str, Any] | None = None

    def __repr__(self) -> str:
        what = "training has not begun" if self.attached is None else repr(self.attached)
        return f"{type(self).__name__}({what})"

    def attach(self, model: nn.Module, optimizers: list[Any], loader: Any) -> Any:
        """Return what to attach when training begins; ``loader`` is the trainer's."""
        raise NotImplementedError

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Attach, and go on where a checkpoint left."""
        model = pl_module if self._module is None else self._module(pl_module)
        self.attached = self.attach(model, list(trainer.optimizers), trainer.train_dataloader)
        if self._state is not None:
            self.attached.load_state_dict(self._state)
            self._state = None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the hooks off."""
        self.attached.close()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Take the hooks off."""
        if self.attached is not None:
            self.attached.close()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint is to hold."""
        return {} if self.attached is None else self.attached.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what a checkpoint holds, before training begins."""
        self._state = state_dict or None


class RecordCallback(_Attached):
    """The callback records the base model that Lightning trains; see :func:`flerm_fx.record`.

    Batches, rates, schedule, decays and parameter groups are those of the trainer and the module.

    Args:
        inputs: probe pool; the first 21 batches of the trainer's own loader if None, which leaves
            the run what it is without.
        targets: of the pool; None where the batches hold them.
        path: where to write the profile when training ends; nowhere if None.
        module: picks the module that takes the inputs; the LightningModule itself if None.
        options: of :func:`flerm_fx.record`.

    Attributes:
        recorder: once training has begun.
    """

    def __init__(
        self,
        inputs: Pool | None = None,
        targets: Any = None,
        *,
        path: PathLike | None = None,
        module: Pick | None = None,
        **options: Any,
    ) -> None:
        super().__init__(module)
        self._pool = inputs, targets
        self._path = path_or_none(path)
        self._options = checked_options(record, options)

    @property
    def recorder(self) -> Recorder:
        """The recorder of the run."""
        return begun(self.attached, Recorder)

    def attach(self, model: nn.Module, optimizers: list[Any], loader: Any) -> Recorder:
        """Begin to record."""
        make_ready(self._path)
        inputs, targets = self._pool
        return record(
            model, optimizers, loader if inputs is None else inputs, targets, **self._options
        )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the hooks off and write the profile."""
        super().on_train_end(trainer, pl_module)
        if self._path is not None and trainer.is_global_zero:
            self.recorder.profile.save(self._path)


class MatchCallback(_Attached):
    """The callback matches the model that Lightning trains to a base; see :func:`flerm_fx.match`.

    Args:
        base_profile: recorded on the base, or a law.
        inputs: probe batch; the profile's if None.
        module: picks the module that takes the inputs; the LightningModule itself if None.
        options: of :func:`flerm_fx.match`.

    Attributes:
        matcher: once training has begun.
    """

    def __init__(
        self,
        base_profile: BaseProfile | Predictor,
        inputs: Pool | None = None,
        *,
        module: Pick | None = None,
        **options: Any,
    ) -> None:
        super().__init__(module)
        profile_and_law(base_profile)
        self._base = base_profile
        self._inputs = inputs
        self._options = checked_options(match, options)

    @property
    def matcher(self) -> Matcher:
        """The matcher of the run."""
        return begun(self.attached, Matcher)

    def attach(self, model: nn.Module, optimizers: list[Any], loader: Any) -> Matcher:
        """Begin to match."""
        return match(model, optimizers, self._base, self._inputs, **self._options)
