"""Fit what kernels cannot show to measured runs: overheads of frameworks, slowdown of devices inside a step.

    python benchmarks/fit_runs.py                    # fit, print errors before and after, write nothing
    python benchmarks/fit_runs.py --write            # and write the constants into configs/
    python benchmarks/fit_runs.py --leave-out        # fit without each source (or model) in turn and score it

Constants are per device or per framework, never per model or per run. Each has bounds and a prior at its physical
value, from which it moves only as far as the runs support: log errors squared (less of those far off, see ``loss_of``),
each source weighing the same (see ``weight_of``), plus squared distances from the prior.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from dlcalc.costmodel.estimate import estimate
from dlcalc.costmodel.plans import KNOBS, Plans
from dlcalc.hardware_registry import HardwareRegistry
from dlcalc.specs.calibration import TRAINING_FACTOR
from dlcalc.specs.framework_registry import load_framework
from dlcalc.specs.hardware import HardwareSpec
from dlcalc.specs.load import config_dir
from dlcalc.specs.recipe import Recipe
from dlcalc.validation.runs import MeasuredRun, RunReader, RunSetting, read_models, read_runs
from dlcalc.validation.screening import UsableRun, disagreeing_runs
from dlcalc.validation.sources import known_sources

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Constant:
    """One number to fit: where it lives, where physics puts it, how far it may go, how far without good reason."""

    kind: str
    """device or framework"""
    owner: str
    path: str
    prior: float
    low: float
    high: float
    spread: float
    """Standard deviation of the prior, as a factor (in logarithms)."""
    meaning: str

    @property
    def name(self) -> str:
        return f"{self.owner}.{self.path}"


OLD = ("megatron_deepspeed", "megatron_legacy")
"""Trainers of eager PyTorch on the hosts of 2020 to 2022, whose launches took longest."""
FRAMEWORKS = ("aleph_scaling", "megatron_core", "fsdp_composer", "torchtitan", *OLD)
PROFILES = {"megatron_core": ("megatron", "megatron_bridge")}
"""Profiles that share their constants: one library underneath, whoever starts it."""
PRECISIONS = {
    "a100_80gb": ("bf16",),
    "h100": ("bf16", "fp8"),
    "h100_96gb_500w": ("bf16", "fp8"),
    "b200": ("bf16", "fp8", "mxfp8"),
    "gb200_nvl72": ("bf16", "fp8", "mxfp8", "nvfp4"),
}


POWER_PRIORS = {"h100_96gb_500w": TRAINING_FACTOR * (700.0 / 500.0) ** 0.75}
"""Where power is limited below that of the device whose kernels were measured: arithmetic slows less than power.

The exponent was chosen after a fit had shown 1.3 to 1.4 for this device, so its left-out error is not independent."""


SUSTAINED_PRIORS = {("b200", "bf16"): 1.46}
"""Where long matmuls were timed on a warm device: median of 26 of 0.5 ms and more over our equation of a cool one.

From [moorethreads2025]; the quartiles are 1.35 and 1.52."""


def training_prior(device: str, precision: str) -> float:
    return SUSTAINED_PRIORS.get((device, precision), POWER_PRIORS.get(device, TRAINING_FACTOR))


def training_spread(device: str, precision: str) -> float:
    """The least where kernels were timed on a warm device, or of attention."""
    return 0.06 if precision == "attention" or (device, precision) in SUSTAINED_PRIORS else 0.12


def constants_to_fit() -> list[Constant]:
    """All of them, with their priors."""
    found = [
        Constant(
            "device", name, f"training_factor.{precision}", training_prior(name, precision), 0.8, 2.0,
            training_spread(name, precision), "matmul (or attention) inside a training step over that on a cool device",
        )
        for name, precisions in PRECISIONS.items()
        for precision in (*precisions, "attention")
    ]  # fmt: skip
    found += [
        Constant(
            "attention",
            name,
            "flash1",
            prior,
            0.15,
            0.8,
            0.15,
            "rate of the first flash kernels over the measured ones",
        )
        for name, prior in (("a100_80gb", 0.5), ("h100", 0.28))
    ]
    for name in FRAMEWORKS:
        launch = 35.0 if name in OLD else 20.0
        # passes of Transformer Engine's reach 0.67 of a B200's bandwidth, plain copies 0.85 [moorethreads2025]
        spread = 0.1 if name == "megatron_core" else 0.3
        found += [
            Constant("framework", name, "host_launch_us", launch, 2.0, 80.0, 0.15, "host time per launch"),
            Constant(
                "framework", name, "memory_pass_factor", 1.3, 1.0, 2.0, spread, "memory traffic over that counted"
            ),
            Constant(
                "framework", name, "micro_batch_overhead_us", 300.0, 10.0, 1000.0, 1.0, "host time per micro-batch"
            ),
            Constant("framework", name, "step_overhead_us", 10000.0, 500.0, 100000.0, 1.0, "host time per step"),
        ]
    found += [
        Constant(
            "framework", name, "exchange_handover_us", 50.0, 1.0, 500.0, 0.5,
            "device time of a tensor-parallel exchange beyond its bytes",
        )
        for name in OLD
    ]  # fmt: skip
    found.append(
        Constant(
            "framework", "megatron_deepspeed", "unhidden_launches", 0.2, 0.01, 0.6, 1.0,
            "share of launches that the device waits for",
        )
    )  # fmt: skip
    for name in ("fsdp_composer", "torchtitan", "megatron_core"):
        found.append(
            Constant(
                "framework",
                name,
                "overlap_slowdown",
                0.15,
                0.01,
                0.6,
                0.2,
                "slowing of compute by communication behind it",
            )
        )
    return found


CONSTANTS = constants_to_fit()


@dataclass(frozen=True)
class Group:
    """Runs that share everything but the plan, so that they are estimated together."""

    setting: RunSetting
    plans: Plans
    measured_s: Array
    sources: tuple[str, ...]
    models: tuple[str, ...]
    cases: tuple[str, ...]
    weight: Array


def usable(run: MeasuredRun) -> bool:
    """Whether a run's step time may be fitted: measured, of a whole model."""
    return bool(run.number("step_time_s")) and run.extras.get("scope") != "one_transformer_layer"


FEW_RUNS = 20
"""A source of fewer runs weighs by their number: three runs of one model say little, however far off they are."""
UNSURE_WEIGHT = 0.5
"""Of a run whose settings its source does not vouch for (trust=B)."""


def load() -> list[Group]:
    """The shipped runs that may be fitted, less those that another of the same setting contradicts."""
    folder = config_dir() / "measured"
    models, registry = read_models(folder / "models.yaml"), HardwareRegistry()
    runs = [run for file in sorted(folder.glob("*.csv")) for run in read_runs(file) if usable(run)]
    reader = RunReader(models, registry)
    read = [UsableRun(run, reader.setting(run), float(run.number("step_time_s") or 0.0)) for run in runs]
    contradicted = {id(one.run) for one in disagreeing_runs(read)}
    found: dict[str, list[tuple[MeasuredRun, RunSetting]]] = {}
    for one in read:
        if id(one.run) in contradicted:
            continue
        setting = one.setting
        key = repr(
            (
                setting.model,
                setting.hardware.name,
                setting.hardware.node,
                setting.hardware.fabric,
                setting.recipe,
                setting.custom_split,
            )
        )
        found.setdefault(key, []).append((one.run, setting))
    counts: dict[str, int] = {}
    for members in found.values():
        for run, _ in members:
            counts[run.source] = counts.get(run.source, 0) + 1
    groups = []
    for members in found.values():
        rows = {knob: np.array([float(getattr(setting.plan, knob)) for _, setting in members]) for knob in KNOBS}
        groups.append(
            Group(
                setting=members[0][1],
                plans=Plans.rows(rows),
                measured_s=np.array([run.number("step_time_s") for run, _ in members], dtype=float),
                sources=tuple(run.source for run, _ in members),
                models=tuple(run.text("model") for run, _ in members),
                cases=tuple(run.case for run, _ in members),
                weight=np.array([weight_of(run, counts) for run, _ in members]),
            )
        )
    return groups


def weight_of(run: MeasuredRun, counts: dict[str, int]) -> float:
    vouched = UNSURE_WEIGHT if run.extras.get("trust") == "B" else 1.0
    return float(max(counts[run.source], FEW_RUNS) ** -0.5 * known_sources()[run.source].weight * vouched)


def profiles_of(owner: str) -> tuple[str, ...]:
    return PROFILES.get(owner, (owner,))


def today(constant: Constant, registry: HardwareRegistry) -> float:
    """The value in configs."""
    if constant.kind == "device":
        calibration = registry.load(constant.owner).calibration
        key = constant.path.partition(".")[2]
        return calibration.slowing_in_training(key)
    if constant.kind == "attention":
        return registry.load(constant.owner).calibration.attention["bf16"].kernel_fractions[constant.path]
    return float(getattr(load_framework(profiles_of(constant.owner)[-1]), constant.path))


def changed(setting: RunSetting, values: dict[tuple[str, str, str], float]) -> tuple[HardwareSpec, Recipe]:
    """The run's hardware and recipe with these constants in place."""
    hardware, recipe = setting.hardware, setting.recipe
    own = {
        path.partition(".")[2]: value
        for (kind, owner, path), value in values.items()
        if kind == "device" and owner == hardware.name
    }
    if own:
        factors = {**hardware.calibration.training_factor, **own}
        hardware = hardware.model_copy(
            update={"calibration": hardware.calibration.model_copy(update={"training_factor": factors})}
        )
    kernels = {
        path: value for (kind, owner, path), value in values.items() if kind == "attention" and owner == hardware.name
    }
    if kernels:
        rates = {
            key: one.model_copy(update={"kernel_fractions": {**one.kernel_fractions, **kernels}})
            for key, one in hardware.calibration.attention.items()
        }
        hardware = hardware.model_copy(
            update={"calibration": hardware.calibration.model_copy(update={"attention": rates})}
        )
    settings = {
        path: value
        for (kind, owner, path), value in values.items()
        if kind == "framework" and recipe.framework.name in profiles_of(owner)
    }
    if "host_launch_us" in settings:  # a row whose graphs replay some launches keeps its share of them
        usual = load_framework(recipe.framework.name).host_launch_us
        settings["host_launch_us"] *= recipe.framework.host_launch_us / usual
    if settings:
        recipe = recipe.model_copy(update={"framework": recipe.framework.model_copy(update=settings)})
    return hardware, recipe


def errors(groups: Sequence[Group], constants: Sequence[Constant], values: Array) -> list[Array]:
    """Log of estimated over measured, group by group."""
    table = {(c.kind, c.owner, c.path): float(v) for c, v in zip(constants, values, strict=True)}
    found = []
    for group in groups:
        hardware, recipe = changed(group.setting, table)
        estimated = estimate(
            group.setting.model, hardware, recipe, group.plans, custom_split=group.setting.custom_split
        )
        found.append(np.log(np.broadcast_to(estimated.step_time_s, group.measured_s.shape) / group.measured_s))
    return found


def touched_by(group: Group, constant: Constant) -> bool:
    if constant.kind == "device":
        precision = constant.path.partition(".")[2]
        own = "bf16" if group.setting.recipe.precision == "fp16" else group.setting.recipe.precision
        return group.setting.hardware.name == constant.owner and precision in (own, "bf16", "attention")
    if constant.kind == "attention":
        return (
            group.setting.hardware.name == constant.owner and group.setting.recipe.framework.attention == constant.path
        )
    return group.setting.recipe.framework.name in profiles_of(constant.owner)


def fit(
    groups: Sequence[Group], constants: Sequence[Constant], *, start: Array | None = None, steps: int = 12
) -> Array:
    """Damped Gauss-Newton in logarithms; the Jacobian re-estimates only the groups that a constant touches."""
    lows, highs = (np.log([getattr(c, side) for c in constants]) for side in ("low", "high"))
    priors = np.log([c.prior for c in constants])
    spreads = np.array([c.spread for c in constants])
    touched = [[i for i, g in enumerate(groups) if touched_by(g, c)] for c in constants]
    weights = np.concatenate([g.weight for g in groups]) * 10.0
    offsets = np.cumsum([0, *(len(g.measured_s) for g in groups)])

    def residuals(x: Array) -> Array:
        return np.concatenate([*errors(groups, constants, np.exp(x)), (x - priors)])

    def scaled(x: Array) -> Array:
        r = residuals(x)
        n = len(weights)
        return np.concatenate([weights * r[:n] / 0.05, r[n:] / spreads])

    def jacobian(x: Array) -> Array:
        base = errors(groups, constants, np.exp(x))
        columns = np.zeros((len(weights) + len(x), len(x)))
        for j in range(len(x)):
            h = 1e-3
            moved = np.array(x)
            moved[j] += h
            part = errors([groups[i] for i in touched[j]], constants, np.exp(moved))
            for i, after in zip(touched[j], part, strict=True):
                columns[offsets[i] : offsets[i + 1], j] = (
                    weights[offsets[i] : offsets[i + 1]] * (after - base[i]) / h / 0.05
                )
            columns[len(weights) + j, j] = 1.0 / spreads[j]
        return columns

    x0 = np.clip(priors if start is None else np.log(start), lows + 1e-6, highs - 1e-6)
    answer = least_squares(
        scaled, x0, jac=jacobian, bounds=(lows, highs), loss=loss_of((weights * FAR_OFF / 0.05) ** 2), max_nfev=steps
    )
    return np.exp(answer.x)


FAR_OFF = 0.15
"""An error (in logarithms) from which on a run says ever less: a recipe of another release, a fault of the machine."""


def loss_of(squares_far_off: Array) -> Callable[[Array], Array]:
    """Cauchy's for runs, which goes over at their weighted error squared that is far off; squares for the priors after.

    As scipy wants it: the loss of squared residuals, and its first and second derivative.
    """
    n_runs = len(squares_far_off)

    def loss(squared: Array) -> Array:
        priors = squared[n_runs:]
        runs = 1.0 + squared[:n_runs] / squares_far_off
        return np.stack([
            np.concatenate([squares_far_off * np.log(runs), priors]),
            np.concatenate([1.0 / runs, np.ones_like(priors)]),
            np.concatenate([-1.0 / (squares_far_off * runs**2), np.zeros_like(priors)]),
        ])  # fmt: skip

    return loss


def summary(groups: Sequence[Group], found: Iterable[Array]) -> dict[str, Array]:
    by_source: dict[str, list[float]] = {}
    for group, error in zip(groups, found, strict=True):
        for source, value in zip(group.sources, np.expm1(error), strict=True):
            by_source.setdefault(source, []).append(float(value))
    return {source: np.array(values) for source, values in sorted(by_source.items())}


def show(title: str, table: dict[str, Array]) -> None:
    print(f"\n{title}\n{'source':20s} {'runs':>5s} {'median':>7s} {'mean':>7s} {'p90':>7s} {'worst':>7s} {'bias':>7s}")
    for source, values in table.items():
        a = np.abs(values) * 100
        columns = (np.median(a), a.mean(), np.quantile(a, 0.9), a.max())
        bias = np.median(values) * 100
        print(f"{source:20s} {len(a):5d}", *(f"{column:7.1f}" for column in columns), f"{bias:+7.1f}")


def write(constants: Sequence[Constant], values: Array) -> None:
    """Put the constants into their YAML files, changing nothing else."""
    folder = config_dir()
    for constant, value in zip(constants, values, strict=True):
        for owner in profiles_of(constant.owner):
            where = folder / "frameworks" if constant.kind == "framework" else folder
            write_one(where / f"{owner}.yaml", constant, value)


def write_one(file: Path, constant: Constant, value: float) -> None:
    text = file.read_text()
    if constant.kind == "framework":
        line = f"{constant.path}: {rounded(value)}"
        text, n = re.subn(rf"^{constant.path}:.*$", line, text, flags=re.M)
        if not n:
            text = text.rstrip("\n") + f"\n{line}\n"
    elif constant.kind == "attention":
        text = re.sub(rf"(kernel_fractions: {{.*?{constant.path}: )[\d.]+", rf"\g<1>{rounded(value)}", text)
    else:
        key = constant.path.partition(".")[2]
        if re.search(r"^  training_factor:", text, flags=re.M):
            old = dict(re.findall(r"(\w+): ([\d.]+)", re.search(r"^  training_factor: \{(.*)\}", text, flags=re.M)[1]))
        else:
            old = {}
            text = re.sub(
                r"^calibration: \{like: (\w+)\}$",
                r"calibration:\n  like: \1\n  training_factor: {}",
                text,
                flags=re.M,
            )
            text = re.sub(
                r"^  node_collectives:", "  training_factor: {}\n  node_collectives:", text, count=1, flags=re.M
            )
            if "training_factor" not in text:
                text = re.sub(r"^(calibration:.*)$", r"\1\n  training_factor: {}", text, count=1, flags=re.M)
        old[key] = f"{value:.3f}"
        body = ", ".join(f"{k}: {v}" for k, v in sorted(old.items()))
        text = re.sub(r"^  training_factor: \{.*\}", f"  training_factor: {{{body}}}", text, flags=re.M)
    file.write_text(text)


def rounded(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{float(f'{value:.3g}'):g}" if value < 1e5 else f"{value:.0f}"


def left_out(
    groups: Sequence[Group], constants: Sequence[Constant], fitted: Array, *, only: Sequence[str] = ()
) -> tuple[dict[str, Array], list[tuple[str, str, float]]]:
    """Errors on each source when it was not fitted; where it alone covers a device or framework, on each model.

    Every fit starts where the whole one ended; a constant that has no runs left goes back to its prior.
    """
    found: dict[str, Array] = {}
    cases: list[tuple[str, str, float]] = []
    alone = sources_alone_on_a_device(groups)
    for source in sorted({s for g in groups for s in g.sources if not only or s in only}):
        models = sorted({g.models[0] for g in groups if g.sources[0] == source})
        folds = [(source, model) for model in models] if source in alone and len(models) > 1 else [(source, None)]
        values: list[float] = []
        for of, model in folds:
            outside = [g for g in groups if g.sources[0] == of and model in (None, g.models[0])]
            inside = [g for g in groups if g not in outside]
            again = [i for i, c in enumerate(constants) if any(touched_by(g, c) for g in outside)]
            near = [g for g in inside if any(touched_by(g, constants[i]) for i in again)]
            joined = [i for i, c in enumerate(constants) if i in again or any(touched_by(g, c) for g in near)]
            chosen = [constants[i] for i in joined]
            priors = np.array([c.prior for c in chosen])
            refitted = fit(near, chosen, start=fitted[joined], steps=8) if near else priors
            for group, error in zip(outside, errors(outside, chosen, refitted), strict=True):
                values += [float(v) for v in np.expm1(error)]
                cases += [(source, case, float(np.exp(v))) for case, v in zip(group.cases, error, strict=True)]
        found[source] = np.array(values)
        print(f"left out {source}: median {np.median(np.abs(found[source])) * 100:.1f} %", flush=True)
    return found, cases


def save(path: Path, cases: Iterable[tuple[str, str, float]]) -> None:
    """What fit_uncertainty.py reads."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("source", "case", "estimated_over_measured"))
        writer.writerows(cases)


def sources_alone_on_a_device(groups: Sequence[Group]) -> set[str]:
    by_device: dict[str, set[str]] = {}
    for group in groups:
        by_device.setdefault(group.setting.hardware.name, set()).update(group.sources)
    by_framework: dict[str, set[str]] = {}
    for group in groups:
        by_framework.setdefault(group.setting.recipe.framework.name, set()).update(group.sources)
    return {next(iter(s)) for table in (by_device, by_framework) for s in table.values() if len(s) == 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument(
        "--leave-out", nargs="*", metavar="SOURCE", help="score these sources (or all) left out of the fit"
    )
    parser.add_argument(
        "--save", type=Path, metavar="CSV", help="where to keep the left-out errors, for fit_uncertainty.py"
    )
    parser.add_argument("--only", nargs="+", metavar="SOURCE", help="fit and score these sources alone")
    arguments = parser.parse_args()
    groups, registry = load(), HardwareRegistry()
    if arguments.only:
        groups = [group for group in groups if group.sources[0] in arguments.only]
    constants = [c for c in CONSTANTS if any(touched_by(g, c) for g in groups)]
    before_fit = np.array([today(c, registry) for c in constants])
    show("configs as they are", summary(groups, errors(groups, constants, before_fit)))
    fitted = fit(groups, constants, steps=30)
    show("fitted", summary(groups, errors(groups, constants, fitted)))
    for constant, before, after in zip(constants, before_fit, fitted, strict=True):
        at_bound = (
            " at its bound" if min(abs(np.log(after / constant.low)), abs(np.log(constant.high / after))) < 1e-3 else ""
        )
        print(f"{constant.name:45s} {before:9.4g} -> {after:9.4g}{at_bound}   {constant.meaning}")
    if arguments.write:
        write(constants, fitted)
    if arguments.leave_out is not None:
        found, cases = left_out(groups, constants, fitted, only=arguments.leave_out)
        show("left out", found)
        if arguments.save:
            save(arguments.save, cases)


if __name__ == "__main__":
    main()
