"""A recipe's plan as text."""

import math
import sys

from dtrain.cli.tables import bytes_text
from dtrain.data.source import Description
from dtrain.recipe.metrics import compared_by
from dtrain.recipe.plan import checkpoint_size, pace_of, total_steps
from dtrain.recipe.values import Recipe
from dtrain.recipe.weights import compare
from dtrain.scale.memory import plan_memory_under
from dtrain.scale.tables import DDP, Parallel
from dtrain.scale.tables import title as engine_title
from dtrain.spec.blocks import Row
from dtrain.spec.initial import Shape
from dtrain.spec.layers import title
from dtrain.spec.misfits import every_length
from dtrain.spec.models import Model, ModelSpec, weights_of
from dtrain.spec.rates import Plateau
from dtrain.spec.schedules import Constant, Schedule, in_steps
from dtrain.spec.sweep import Sweep
from dtrain.spec.table import Imported
from dtrain.spec.words import visible

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 48  # bars of a picture
SAMPLES = 2_000  # steps that are looked at


def print_plan(recipe: Recipe, data: Description | None, engine: Parallel, processes: int) -> None:
    """Print what a recipe will do with its data, where that is known, on so many processes of an engine."""
    examples = None if data is None else data.count
    for name, model in recipe.models.items():
        print("\n".join([*model_lines(name, model), *beginning_lines(model)]), end="\n\n")
    print("\n".join(phase_lines(recipe)), end="\n\n")
    if rates := rate_lines(recipe, examples):
        print("\n".join(rates), end="\n\n")
    print("\n".join(data_lines(recipe, examples, processes)), end="\n\n")
    print("\n".join(memory_lines(recipe, engine, processes)))
    if recipe.sweep is not None:
        print(f"\n{sweep_line(recipe, recipe.sweep)}")


def sweep_line(recipe: Recipe, sweep: Sweep) -> str:
    """What `dtrain sweep` will try."""
    trials = len(sweep.grid()) if sweep.is_grid else sweep.trials
    seeds = f", each with {sweep.seeds} seeds" if sweep.seeds > 1 else ""
    metric, mode = compared_by(recipe)
    axes = f" of {', '.join(sweep.axes)}" if sweep.axes else ""
    most = None if sweep.is_grid else sweep.different()
    few = most is not None and most < (trials or 0)
    hint = f' (only {most} can differ; sampler = "grid" takes each once)' if few else ""
    return visible(f"sweep: {trials} trials ({sweep.sampler}){axes}{seeds}; {mode} {metric}{hint}")


def model_lines(name: str, model: Model) -> list[str]:
    """A model's layers, with the shape after each and its parameters."""
    if not isinstance(model, ModelSpec):
        return [f"model {name}: {model.path} (imported when it is built)"]
    rows = model.rows()
    width = max(len(row.name) + len(title(row.layer)) for row in rows) + 6
    ends = f"{shape_text(model.input)} to {shape_text(model.output)}"
    more = " + those of imported layers" if model.imports_layers else ""
    lines = [f"model {name}: {ends}, {model.parameter_count():,} parameters{more}"]
    return lines + [layer_line(row, width) for row in rows]


def beginning_lines(model: Model) -> list[str]:
    """Which weights a model begins with, of those that come from a file."""
    if (source := weights_of(model)) is None:
        return []
    compared = compare(model, source) if isinstance(model, ModelSpec) else None
    said = f"weights of {source.path}, compared when the model is built"
    return [f"  begins with {visible(said if compared is None else compared.in_words())}"]


def layer_line(row: Row, width: int) -> str:
    """One layer: its canonical name, its kind, the shape that comes out, how many numbers it trains."""
    count = sum(math.prod(parameter.shape) for parameter in row.layer.parameters(row.before).values())
    left = f"  {row.name:<3} {title(row.layer)}"
    line = f"{left:<{width}} {shape_text(row.after)}"
    return f"{line:<{width + 20}} {count:>10,}" if count else line


def phase_lines(recipe: Recipe) -> list[str]:
    """The phases of a step."""
    if isinstance(recipe.system, Imported):
        return [f"phases: known when {recipe.system.path} is imported"]
    lines = ["each step"]
    for number, phase in enumerate(recipe.system.phases(), 1):
        often = f"{phase.repeat} updates" if phase.repeat > 1 else "1 update"
        when = f", every {phase.every} steps" if phase.every > 1 else ""
        rates = ", ".join(rate_text(recipe, name) for name in phase.updates)
        lines.append(f"  {number}. {often} of {' and '.join(phase.updates)}{when} ({rates})")
    return lines


def rate_text(recipe: Recipe, name: str) -> str:
    """An optimizer in a few words."""
    optimizer = recipe.optimizers[name]
    limits = {"clip_value": optimizer.clip_value, "clip": optimizer.clip}
    clip = "".join(f", {name} {limit:g}" for name, limit in limits.items() if limit is not None)
    groups = len(optimizer.groups)
    own = f", {groups} group{'s' * (groups > 1)} with settings of their own" if groups else ""
    kind = optimizer.kind or getattr(optimizer, "path", "")
    schedule = optimizer.schedule
    return f"{kind} lr {optimizer.lr:g} {getattr(schedule, 'path', schedule.kind)}{clip}{own}"


def rate_lines(recipe: Recipe, examples: int | None) -> list[str]:
    """The learning rates over the run, of those that a schedule of dtrain's own moves."""
    pace = pace_of(recipe.train, recipe.system, examples)
    lines = []
    width = max(map(len, recipe.optimizers), default=0)
    for name, optimizer in recipe.optimizers.items():
        schedule = optimizer.schedule
        if schedule == Constant() or pace is None or not all(map(pace.knows, every_length(schedule))):
            continue
        if isinstance(schedule, Schedule):
            lines.append(
                f"  {name:<{width}}  {rates_text(optimizer.lr, in_steps(schedule, pace), pace.total)}"
            )
        elif isinstance(schedule, Plateau):
            lowest = f" down to {optimizer.lr * schedule.floor:.3g}" if schedule.floor else ""
            when = f"whenever {schedule.monitor} has not improved for {schedule.patience + 1} evaluations"
            lines.append(f"  {name:<{width}}  {optimizer.lr:.3g}, times {schedule.factor:g} {when}{lowest}")
    return ["learning rates over the run", *lines] if lines else []


def rates_text(lr: float, schedule: Schedule, total: int) -> str:
    """A picture of a learning rate, and the numbers that it goes through: first, highest, lowest, last."""
    steps = sorted({round(n * (total - 1) / (SAMPLES - 1)) for n in range(SAMPLES)})
    rates = [lr * schedule(step, total) for step in steps]
    highest, lowest = max(rates), min(rates)
    bars = [rates[n * len(rates) // WIDTH] for n in range(WIDTH)] if len(rates) > WIDTH else rates
    heights = [round(rate / highest * (len(BARS) - 1)) if highest else 0 for rate in bars]
    picture = "".join(BARS[height] for height in heights)
    ends = f"{rates[0]:.3g} at first, {rates[-1]:.3g} at last"
    said = f"{lowest:.3g} to {highest:.3g} (step {steps[rates.index(highest)] + 1:,}), {ends}"
    return f"{picture}  {said}" if _can_print(picture) else said


def _can_print(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def data_lines(recipe: Recipe, examples: int | None, processes: int) -> list[str]:
    """How the examples divide into updates, micro-batches and processes."""
    train, steps = recipe.train, total_steps(recipe, examples)
    count = -(-train.batch_size // train.micro)
    most = -(-count // processes)
    idle = most * processes - count
    lines = [
        f"each update: {train.batch_size} examples, {count} micro-batches of {train.micro}"
        + (f", added up in {train.lanes} lanes" if train.lanes is not None else ""),
        f"  on {processes} process{'es' * (processes > 1)}: {most} micro-batch{'es' * (most > 1)} each"
        + (f", {idle} process{'es' * (idle > 1)} one fewer" if idle else ""),
    ]
    length = f"{steps:,} steps" if steps is not None else f"{train.epochs} epochs"
    if examples is not None:
        length += f" over {examples:,} examples"
    full = [name for name, model in recipe.models.items() if model.precision not in (None, train.precision)]
    but = f" ({', '.join(full)} in fp32)" if full else ""
    return [*lines, f"whole run: {length}, in {train.precision}{but}"]


def memory_lines(recipe: Recipe, engine: Parallel, processes: int) -> list[str]:
    """Estimates in bytes."""
    memory, size = plan_memory_under(engine, recipe, processes), checkpoint_size(recipe)
    if memory is None or size is None:
        return ["memory and size of a checkpoint: unknown, as a model or a layer is imported"]
    parts = ("weights", "gradients", "optimizers", "averages", "activations")
    shares = ", ".join(f"{name} {bytes_text(getattr(memory, name))}" for name in parts)
    saves = f"every {recipe.every.save} steps" if recipe.every.save else "at the end alone (every.save)"
    return [
        f"memory on {devices_text(engine, processes)}: about {bytes_text(memory.total)} ({shares}), and the "
        "libraries' own",
        f"each checkpoint: about {bytes_text(size)}, {saves}",
    ]


def devices_text(engine: Parallel, processes: int) -> str:
    """How many devices there are, and how they keep models: each of 4 devices, under ZeRO 2."""
    called = engine_title(engine)
    if processes == 1:
        return "each device" if isinstance(engine, DDP) else f"the one device, under {called}"
    return f"each of {processes} devices, under {called}"


def shape_text(shape: Shape) -> str:
    """1x28x28."""
    return "x".join(map(str, shape)) or "one number"
