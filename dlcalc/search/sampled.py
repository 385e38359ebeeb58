"""Optuna, asked and told in batches. The only module that knows it, but for ``measured_trials``.

A study of Optuna holds the trials, in memory or in a storage that several processes share and that outlives them. What
a trial stands for is none of its business: it is asked for points, and told what came out of them.

Readable by other tools: parameters carry the names of knobs or of design variables, objectives their names and units;
what else is known of a trial is among its user attributes (``plan``, ``memory_gib``, ``reason`` ...). Ordered values
are sampled by their position, so that 8 is known to lie between 4 and 16: the parameter is ``tp_position``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dlcalc.errors import DlcalcError
from dlcalc.search.variables import Choice, Interval, Point, Value, Variable
from dlcalc.specs.sampling import Goal, Sampler, SearchSpec

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

Said = Mapping[str, str | int | float | list[int]]
"""What is written beside a trial."""

METRICS: Mapping[Goal, str] = {
    "step_time": "step time (s)",
    "mfu": "MFU",
    "memory": "memory (GiB)",
    "cost": "cost (USD)",
}
MAXIMIZED: frozenset[Goal] = frozenset({"mfu"})
IDENTITY = "dlcalc_study"
"""Attribute of a study: what it is about, so that no other is taken up under its name."""
CONSTRAINT = "memory beyond capacity"
"""Of a trial: the share by which its plan needs more than there is."""
STARTUP_TRIALS = 32
"""Drawn at random before a model of the trials is trusted."""
POPULATION = 32
PENALTY = 100.0
"""CMA-ES knows no constraints: for it, a plan that does not fit takes this many times as long."""
CREATION_TRIES = 10
INSTALL = "pip install 'dlcalc[optuna]'"


@dataclass(frozen=True)
class Asked:
    """A point that a sampler wants to know more of."""

    number: int
    point: Point
    trial: Trial = field(repr=False)


@dataclass(frozen=True)
class Told:
    """What came out of a point."""

    values: tuple[float, ...] = ()
    """One per objective."""
    excess: float = 0.0
    """Memory needed over what there is, less one: above 0 the trial violates its constraint."""
    said: Said = field(default_factory=dict)
    problem: str = ""
    """Why there are no values."""


@dataclass(frozen=True)
class Finished:
    """A trial of the study, whoever made it."""

    number: int
    point: Point
    told: Told


class SampledStudy:
    """A study of Optuna over ``variables``."""

    def __init__(
        self,
        study: Study,
        storage: BaseStorage | None,
        variables: Sequence[Variable],
        spec: SearchSpec,
        *,
        is_new: bool,
    ) -> None:
        self.study, self._storage, self._variables, self._spec = study, storage, variables, spec
        self.is_new = is_new
        self.n_before = len(self.finished())

    @property
    def name(self) -> str:
        return self.study.study_name

    def close(self) -> None:
        """Let go of the storage."""
        if self._storage is not None:
            self._storage.remove_session()
            if hasattr(self._storage, "engine"):  # of a database
                self._storage.engine.dispose()

    def ask(self, count: int) -> list[Asked]:
        """``count`` points to be evaluated together."""
        with storage_errors(self._spec.storage):
            trials = [self.study.ask() for _ in range(count)]
            return [Asked(trial.number, self._point(trial), trial) for trial in trials]

    def _point(self, trial: Trial) -> Point:
        return {variable.name: suggested(trial, variable) for variable in self._variables}

    def tell(self, asked: Asked, told: Told) -> None:
        """What came out of a point; kept at once. One that another process has told, too, stays as it is."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        with storage_errors(self._spec.storage), suppress(UpdateFinishedTrialError):
            for name, value in told.said.items():
                asked.trial.set_user_attr(name, value)
            if told.problem:
                asked.trial.set_user_attr("reason", told.problem)
                self.study.tell(asked.trial, state=TrialState.FAIL)
                return
            if self._spec.sampler_name != "cmaes":
                asked.trial.set_constraint(CONSTRAINT, told.excess)
                if self._spec.sampler_name != "gp":  # which would model the same constraint twice
                    _mark(asked.trial, told.excess)
                self.study.tell(asked.trial, told.values)
                return
            asked.trial.set_user_attr(CONSTRAINT, told.excess)
            (value,) = told.values
            self.study.tell(asked.trial, value if told.excess <= 0 else self._penalized(value, told.excess))

    def _penalized(self, value: float, excess: float) -> float:
        """Worse than every plan that fits, and the worse the less it does."""
        times = PENALTY * (1.0 + excess)
        return value / times if self._spec.goals[0] in MAXIMIZED else value * times

    def suggest_first(self, points: Sequence[Point]) -> None:
        """Points to begin with; variables they leave out are sampled."""
        by_name = {variable.name: variable for variable in self._variables}
        with storage_errors(self._spec.storage):
            for point in points:
                known = {name: value for name, value in point.items() if name in by_name}
                written = dict(_written(by_name[name], value) for name, value in known.items())
                self.study.enqueue_trial(written, user_attrs={"warm_start": "yes"})

    def finished(self) -> list[Finished]:
        """Every trial with an outcome, in order."""
        from optuna.trial import TrialState

        with storage_errors(self._spec.storage):
            trials = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))
        return [Finished(trial.number, self._read(trial), _told(trial)) for trial in trials]

    def _read(self, trial: FrozenTrial) -> Point:
        point: dict[str, Value] = {}
        for variable in self._variables:
            name = parameter_name(variable)
            if name in trial.params:
                value = trial.params[name]
                by_position = isinstance(variable, Choice) and variable.is_ordered
                point[variable.name] = variable.values[value] if by_position else value  # type: ignore[union-attr]
        return point


def open_sampled_study(
    spec: SearchSpec, name: str, variables: Sequence[Variable], identity: Mapping[str, Any], *, journal: str
) -> SampledStudy:
    """The study called ``name``, new or taken up; ``journal`` is the file of ``storage: journal``."""
    optuna = imported()
    told = hashlib.sha256(json.dumps([identity, [repr(v) for v in variables]], sort_keys=True).encode()).hexdigest()[
        :16
    ]
    with storage_errors(spec.storage), quiet():
        storage = storage_of(spec, journal)
        directions = ["maximize" if goal in MAXIMIZED else "minimize" for goal in spec.goals]
        try:
            study = optuna.create_study(study_name=name, storage=storage, directions=directions)
            study.set_user_attr(IDENTITY, told)
            study.set_metric_names([METRICS[goal] for goal in spec.goals])
            is_new = True
        except optuna.exceptions.DuplicatedStudyError:
            study, is_new = optuna.load_study(study_name=name, storage=storage), False
            if _identity(study) != told:
                raise DlcalcError(
                    f"search: study_name: {name!r} in {shown_storage(spec.storage)} is a study of another space; "
                    f"give another study_name, or another storage"
                ) from None
        study.sampler = sampler_of(spec, _seed(spec, study, is_new=is_new))
    return SampledStudy(study, storage, variables, spec, is_new=is_new)


def _identity(study: Study, patience_s: float = 5.0) -> str | None:
    """What the study is about; a process that has just created it may be about to say."""
    ends = time.monotonic() + patience_s
    while (found := study.user_attrs.get(IDENTITY)) is None and not study.get_trials() and time.monotonic() < ends:
        time.sleep(0.05)
    return found


def _seed(spec: SearchSpec, study: Study, *, is_new: bool) -> int:
    """The same for whoever begins a study; those who join it at the same time must not draw the same points."""
    import numpy as np
    from optuna.trial import TrialState

    seed = spec.seed or 0
    if is_new:
        return seed
    trials = study.get_trials(deepcopy=False)
    busy = any(trial.state == TrialState.RUNNING for trial in trials) or not trials
    salt = [seed, len(trials), os.getpid() if busy else 0]
    return int(np.random.SeedSequence(salt).generate_state(1)[0])


# ---- variables as Optuna's parameters


def parameter_name(variable: Variable) -> str:
    """``tp_position`` for ordered values, of which the position is sampled."""
    by_position = isinstance(variable, Choice) and variable.is_ordered
    return f"{variable.name}_position" if by_position else variable.name


def suggested(trial: Trial, variable: Variable) -> Value:
    """The value that ``trial`` gives ``variable``."""
    name = parameter_name(variable)
    if isinstance(variable, Interval):
        if variable.whole:
            return trial.suggest_int(name, int(variable.low), int(variable.high), log=variable.log)
        return trial.suggest_float(name, variable.low, variable.high, log=variable.log)
    if variable.is_ordered:
        return variable.values[trial.suggest_int(name, 0, len(variable.values) - 1)]
    chosen: Value = trial.suggest_categorical(name, variable.values)  # type: ignore[assignment]  # never None here
    return chosen


def _written(variable: Variable, value: Value) -> tuple[str, Value]:
    by_position = isinstance(variable, Choice) and variable.is_ordered
    return parameter_name(variable), variable.values.index(value) if by_position else value  # type: ignore[union-attr]


def _mark(trial: Trial, excess: float) -> None:
    """Say what violates its constraint as before Optuna 5, which optuna-dashboard 0.21 reads.

    Samplers then see the constraint twice; TPE and NSGA-II, which compare sums of violations, answer the same.
    """
    trial.storage.set_trial_system_attr(trial._trial_id, "constraints", [excess])


def _told(trial: FrozenTrial) -> Told:
    said = dict(trial.user_attrs)
    problem = str(said.pop("reason", "")) or ("" if trial.values else "no outcome was told")
    excess = (trial.constraints or {}).get(CONSTRAINT, said.pop(CONSTRAINT, 0.0))
    return Told(values=tuple(trial.values or ()), excess=excess, said=said, problem=problem)


# ---- samplers and storages


def sampler_of(spec: SearchSpec, seed: int) -> BaseSampler:
    """The sampler that is asked for."""
    from optuna import samplers

    name: Sampler = spec.sampler_name
    if name == "tpe":  # each parameter for itself: the coordinates leave little to their interplay
        return samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS, multivariate=False)
    if name == "nsga2":
        return samplers.NSGAIISampler(seed=seed, population_size=POPULATION)
    if name == "random":
        return samplers.RandomSampler(seed=seed)
    needed = {"gp": ("torch", "scipy"), "cmaes": ("cmaes",)}[name]
    if missing := [module for module in needed if importlib.util.find_spec(module) is None]:
        raise DlcalcError(f"search: sampler: {name} needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    if name == "gp":
        return samplers.GPSampler(seed=seed, n_startup_trials=STARTUP_TRIALS, deterministic_objective=True)
    return samplers.CmaEsSampler(seed=seed, n_startup_trials=STARTUP_TRIALS, warn_independent_sampling=False)


def storage_of(spec: SearchSpec, journal: str) -> BaseStorage | None:
    """Where trials are kept; None: in memory."""
    if spec.storage is None:
        return None
    if spec.storage.startswith("journal"):
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        return JournalStorage(JournalFileBackend(journal_file(spec.storage, journal)))
    from optuna.storages import RDBStorage

    patience = {"timeout": 60} if spec.storage.startswith("sqlite") else {}  # others may be writing
    from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

    for left in reversed(range(CREATION_TRIES)):
        try:
            return RDBStorage(with_driver(spec.storage), engine_kwargs={"connect_args": patience})
        except (IntegrityError, OperationalError, ProgrammingError) as error:
            if not left or not re.search("already exists|unique|duplicate", str(error), re.IGNORECASE):
                raise
            time.sleep(0.5)  # another process is creating the tables
    raise AssertionError("the last try returns or raises")


def with_driver(storage: str) -> str:
    """The URL with a driver that is installed, where it names none: SQLAlchemy's own choice depends on its version."""
    scheme, separator, rest = storage.partition("://")
    if scheme != "postgresql":
        return storage
    driver = next((name for name in ("psycopg", "psycopg2") if importlib.util.find_spec(name)), None)
    if driver is None:
        raise DlcalcError(f"search: storage: {shown_storage(storage)} needs psycopg: {INSTALL}")
    return f"{scheme}+{driver}{separator}{rest}"


def journal_file(storage: str, default: str) -> str:
    """``journal:///trials.log`` is trials.log here, ``journal:////tmp/trials.log`` that of /tmp, as SQLite has it."""
    return default if storage == "journal" else storage.removeprefix("journal://").removeprefix("/")


def shown_storage(storage: str | None) -> str:
    """The storage without its password."""
    if storage is None:
        return "memory"
    scheme, separator, rest = storage.partition("://")
    account, at, place = rest.rpartition("@")
    return f"{scheme}{separator}{account.partition(':')[0]}{at}{place}"


def imported() -> Any:  # noqa: ANN401 - a module
    """Optuna, or the line that says how to get it."""
    try:
        import optuna
    except ImportError as error:
        raise DlcalcError(f"search: method: optuna is not installed: {INSTALL}") from error
    if not hasattr(optuna.trial.Trial, "set_constraint"):
        raise DlcalcError(f"search: method: optuna {optuna.__version__} is too old; 5.0 or later is needed: {INSTALL}")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


@contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's remarks on what it calls experimental."""
    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


@contextmanager
def storage_errors(storage: str | None) -> Iterator[None]:
    """Whatever a storage answers, in one line."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with quiet():
            yield
    except ImportError as error:
        raise DlcalcError(f"search: storage: {shown_storage(storage)}: {error}") from error
    except (SQLAlchemyError, StorageInternalError, OSError) as error:
        cause = error.__cause__ or getattr(error, "orig", None) or error
        why = " ".join(str(cause).split("\n(Background")[0].split())
        raise DlcalcError(f"search: storage: {shown_storage(storage)}: {why}") from error
