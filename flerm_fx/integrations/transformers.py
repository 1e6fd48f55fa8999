"""``transformers.Trainer`` records and matches by these callbacks."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from flerm_fx.assign.predictor import Predictor, profile_and_law
from flerm_fx.errors import InputError
from flerm_fx.integrations import begun, checked_options, make_ready, path_or_none
from flerm_fx.profile.file import PathLike
from flerm_fx.profile.profile import BaseProfile
from flerm_fx.recipe.pool import Pool
from flerm_fx.training.matcher import Matcher
from flerm_fx.training.matching import match
from flerm_fx.training.recorder import Recorder
from flerm_fx.training.recording import record


class _Attached(TrainerCallback):
    """An ``_Attached`` hangs on hooks of the trainer's optimizer, and its state is part of
    checkpoints.
    """

    file: str
    attached: Any = None

    def __repr__(self) -> str:
        what = "training has not begun" if self.attached is None else repr(self.attached)
        return f"{type(self).__name__}({what})"

    def attach(self, model: nn.Module, optimizer: Optimizer, loader: Pool | None) -> Any:
        """Return what to attach when training begins; ``loader`` is the trainer's."""
        raise NotImplementedError

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Attach, and go on where a checkpoint left."""
        self.attached = self.attach(
            kwargs["model"], kwargs["optimizer"], kwargs.get("train_dataloader")
        )
        if state.global_step:
            path = self._folder(args, state) / self.file
            if not path.is_file():
                self.attached.close()
                raise InputError(
                    f"{path}: no such file, although training resumes at step {state.global_step}; "
                    "the checkpoint was saved without this callback: begin a new run, or copy the "
                    "file there"
                )
            self.attached.load_state_dict(torch.load(path, weights_only=True))

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Save beside the trainer's own files."""
        if state.is_world_process_zero:
            folder = self._folder(args, state)
            temporary = folder / f".{self.file}.tmp"
            torch.save(self.attached.state_dict(), temporary)
            temporary.replace(folder / self.file)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Take the hooks off."""
        self.attached.close()

    def _folder(self, args: TrainingArguments, state: TrainerState) -> Path:
        name = f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        resumed = args.resume_from_checkpoint
        if isinstance(resumed, str) and Path(resumed).name == name and Path(resumed).is_dir():
            return Path(resumed)
        return Path(str(args.output_dir)) / name


class RecordCallback(_Attached):
    """The callback records the base model that a ``Trainer`` trains; see :func:`flerm_fx.record`.

    Batches, rates, schedule, decays and parameter groups are those of the trainer and its
    ``TrainingArguments``. The profile is written when training ends. Checkpoints hold what was
    recorded so far, and ``trainer.train(resume_from_checkpoint=...)`` goes on with it.

    Args:
        inputs: probe pool; the first 21 batches of the trainer's own loader if None, which leaves
            the run what it is without.
        path: where to write the profile; nowhere if None.
        options: of :func:`flerm_fx.record`.

    Attributes:
        recorder: once training has begun.

    Example::

        trainer = Trainer(model, args, train_dataset=data, callbacks=[
            RecordCallback(path="base.safetensors")])
        trainer.train()
    """

    file = "flerm_recorder.pt"

    def __init__(
        self, inputs: Pool | None = None, *, path: PathLike | None = None, **options: Any
    ) -> None:
        self._inputs = inputs
        self._path = path_or_none(path)
        self._options = checked_options(record, options)

    @property
    def recorder(self) -> Recorder:
        """The recorder of the run."""
        return begun(self.attached, Recorder)

    def attach(self, model: nn.Module, optimizer: Optimizer, loader: Pool | None) -> Recorder:
        """Begin to record."""
        make_ready(self._path)
        inputs: Any = loader if self._inputs is None else self._inputs
        return record(model, optimizer, inputs, **self._options)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Take the hooks off and write the profile."""
        super().on_train_end(args, state, control, **kwargs)
        if self._path is not None and state.is_world_process_zero:
            self.recorder.profile.save(self._path)


class MatchCallback(_Attached):
    """The callback matches the model that a ``Trainer`` trains to a base; see
    :func:`flerm_fx.match`.

    Args:
        base_profile: recorded on the base, or a law.
        inputs: probe batch; the profile's if None.
        options: of :func:`flerm_fx.match`.

    Attributes:
        matcher: once training has begun.

    Example::

        trainer = Trainer(model, args, train_dataset=data, callbacks=[
            MatchCallback(BaseProfile.load("base.safetensors"))])
        trainer.train()
    """

    file = "flerm_matcher.pt"

    def __init__(
        self, base_profile: BaseProfile | Predictor, inputs: Pool | None = None, **options: Any
    ) -> None:
        profile_and_law(base_profile)
        self._base = base_profile
        self._inputs = inputs
        self._options = checked_options(match, options)

    @property
    def matcher(self) -> Matcher:
        """The matcher of the run."""
        return begun(self.attached, Matcher)

    def attach(self, model: nn.Module, optimizer: Optimizer, loader: Pool | None) -> Matcher:
        """Begin to match."""
        return match(model, optimizer, self._base, self._inputs, **self._options)
