"""How a model's learning rates are set: standard training, muP, and flerm_fx in several ways."""

from dataclasses import dataclass
from typing import Literal

from flerm_fx.probe.planner import Method as Estimator

Kind = Literal["standard", "mup", "mup-rates", "completep", "compile", "released", "law", "match"]

Mass = Literal["recorded", "root", "equal", "equal-split"]

EVERY_100 = tuple(range(0, 1000, 100))
"""Where the paper matches."""

COURSE = (60, 80, 100, 130, 160, 200)
"""Where the runs that a law of courses is fitted to are measured."""

POWERS_OF_2 = (0, *(2**k for k in range(10)))


@dataclass(frozen=True)
class Method:
    """One way of setting the learning rate of every parameter.

    Attributes:
        key: names it on the command line and in files.
        title: names it in tables.
        kind: ``"compile"`` finds multipliers once, at the start; ``"law"`` has those that a law
            predicts, fitted to models of the scales ``fitted`` that are below the run's, to their
            starts or with ``course`` to runs of them and the base, measured at each of ``at``;
            ``"match"`` finds them at each of ``at``, from those of ``compile`` on if ``compiled``;
            ``"mup-rates"`` has those of muP, on the model as it is; ``"completep"`` is
            :mod:`experiments.completep`; ``"released"`` is what an earlier version found, which
            that version's own program has run.
        settle: as for :func:`flerm_fx.record`, but no more than a run has steps.
        seeds: base models, under as many seeds, whose profiles are averaged.
        estimator: ``method`` of :func:`flerm_fx.measure`.
        mass: whose FSLRs are met: the base's as recorded, a parameter's split equally over those
            that answer to it; split by the root of their number instead, which is right where
            their changes of the function are orthogonal; or, the paper's ablations, equal ones,
            1/L for each of the target's L tensors, or 1/L for each of the base's, split over depth.
        at: the steps to match at; ``"start"``, those of the start.
        fitted: scales of the models that a law is fitted to.
        course: whether it is fitted to courses of runs.
        off_rate: the base is recorded at so many times its best rate.
        compiled: whether a matched run begins with what ``compile`` finds.
        first: base models that are passed over before those that are recorded.
    """

    key: str
    title: str
    kind: Kind
    settle: int = 0
    seeds: int = 8
    estimator: Estimator = "auto"
    mass: Mass = "recorded"
    at: tuple[int, ...] | Literal["start"] = EVERY_100
    fitted: tuple[float, ...] = (2, 3, 4)
    course: bool = False
    off_rate: float = 1.0
    compiled: bool = False
    first: int = 0

    @property
    def own_base(self) -> bool:
        """Whether the base itself is trained otherwise than by standard training."""
        return self.mass in ("equal", "equal-split")

    @property
    def trajectory(self) -> bool:
        """Whether the base is to be trained, and recorded on the way."""
        return self.course or (self.kind == "match" and self.at != "start")

    @property
    def recorded(self) -> str:
        """Names the profile that it needs: methods with equal ones share it."""
        trajectory = f"-at-{'-'.join(map(str, self.at))}" if self.trajectory else ""
        rate = "" if self.off_rate == 1 else f"-rate-{self.off_rate:g}"
        first = f"-from-{self.first}" if self.first else ""
        settled = f"{self.estimator}-settle-{self.settle}"
        return f"{settled}-seeds-{self.seeds}{first}{rate}{trajectory}"


METHODS: dict[str, Method] = {
    method.key: method
    for method in (
        Method("standard", "standard", "standard"),
        Method("mup", "muP", "mup"),
        Method("compile", "compile", "compile", settle=100),
        Method("mup-rates", "muP's rates", "mup-rates"),
        Method("completep", "CompleteP", "completep"),
        Method("first-step", "compile, first step", "compile"),
        Method("match", "match, each by itself", "match"),
        Method("match-pooled", "match, every 100 steps", "match", settle=100),
        Method("match-start", "match, at the start", "match", settle=100, at="start"),
        Method("match-compiled", "match, from compile", "match", settle=100, compiled=True),
        Method("match-log", "match, at powers of 2", "match", at=POWERS_OF_2),
        Method("paper", "the paper's estimator", "match", estimator="kronecker"),
        Method("one-seed", "compile, one base", "compile", settle=100, seeds=1),
        *(
            Method(f"base-{k}", f"compile, base {k}", "compile", settle=100, seeds=1, first=k - 1)
            for k in (2, 3, 4)
        ),
        Method("released", "compile of 0.1.0, one base", "released", settle=100, seeds=1),
        Method("law", "law", "law", settle=100),
        Method(
            "law-course",
            "law of courses",
            "law",
            settle=100,
            seeds=3,
            at=COURSE,
            fitted=(2,),
            course=True,
        ),
        Method("tenth", "compile, recorded at a tenth", "compile", settle=100, off_rate=0.1),
        Method("triple", "compile, recorded at 3 times", "compile", settle=100, off_rate=3.0),
        Method("settle-10", "compile, 10 steps", "compile", settle=10),
        Method("settle-30", "compile, 30 steps", "compile", settle=30),
        Method("root", "compile, split by the root", "compile", settle=100, mass="root"),
        Method("equal", "equal masses", "compile", settle=100, mass="equal"),
        Method("equal-split", "equal, split over depth", "compile", settle=100, mass="equal-split"),
    )
}
"""All methods, by key."""

SINGLE_BASES = ("one-seed", "base-2", "base-3", "base-4")
"""What differs between them is the base that is recorded, and nothing else."""

QUICK = ("standard", "compile")
"""What a quick run trains by."""

MAIN = (
    "standard",
    "compile",
    "one-seed",
    "released",
    "law",
    "mup-rates",
    "completep",
    "mup",
    "first-step",
    "match-pooled",
    "match-start",
    "match-compiled",
    "match",
    "paper",
)
"""What every axis is trained by, muP and CompleteP where they apply; the others are ablations."""
