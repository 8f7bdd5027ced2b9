"""Runs rows, seed by seed, and keeps records."""

import functools
import math
import pathlib
import shutil
import sys
import time
import traceback

import keras
import records
import speed
import verdicts
from inputs import Missing, check
from rows import sizes
from running import Places, Run, key_of


def run_row(row, args):
    """Run a row with all its seeds.

    Args:
        row: rows.Row.
        args: options of ``run.parse``.

    Returns:
        List of str, an outcome of each seed: ``measured``, ``kept``, ``skipped: why`` or ``failed: why``.
    """
    records.code()  # before a commit that is made while the row runs
    setting, outcomes = row.setting(args.profile), []
    seeds = row.seeds(args.profile) if args.seeds is None else args.seeds
    try:
        check(row.needs(args.profile), args.profile, args.data_dir, args.weights)
    except Missing as missing:
        print(f"{row.name}: skipped, because it lacks {missing}", flush=True)
        return [f"skipped: {missing}"]
    dtype = policy(args.dtype)
    for seed in seeds:
        path = records.path_of(args.results, row.name, args.profile, seed)
        if path.exists() and not args.again and records.read(path)["key"] == key_of(setting, seed, dtype):
            print(f"{row.name} seed {seed}: measured already, {path.name}", flush=True)
            outcomes.append("kept")
            continue
        minutes = announce(row, args, seed, dtype)
        if getattr(args, "until", None) and time.perf_counter() + 60 * (minutes or 0) > args.until:
            print(
                f"{row.name} seed {seed}: skipped, because it would end after the {args.minutes:g} minutes", flush=True
            )
            outcomes.append("skipped: no time")
            break
        keras.utils.clear_session()  # of the row before, so that a long run does not fill the memory
        try:
            record = measure(row, args, seed, dtype, places(args))
        except Missing as missing:
            print(f"{row.name}: skipped, because it lacks {missing}", flush=True)
            outcomes.append(f"skipped: {missing}")
            break
        except Exception as error:  # the next row is to be run
            traceback.print_exc()
            outcomes.append(f"failed: {row.name} seed {seed}: {error}")
            continue
        folder = args.work / "records" if args.profile == "smoke" else args.results
        records.write(folder, record)
        told = ", ".join(f"{name} {value:.4g}" for name, value in record["measured"].items())
        print(f"{row.name} seed {seed}: {told} ({record['seconds']:.0f} s)", flush=True)
        outcomes.append("measured")
    return outcomes


def measure(row, args, seed, dtype, where):
    """Run a row with a seed; returns its record, a dict.

    Raises:
        ValueError: if its function returns no numbers, or such that are not finite; those of smoke are left out.
    """
    setting = row.setting(args.profile)
    verbose, draws = 0 if args.profile == "smoke" else 2, seed == row.seeds(args.profile)[0]
    run = Run(row.name, args.profile, seed, setting, where, dtype, verbose, draws)
    keras.utils.set_random_seed(seed)
    started = time.perf_counter()
    result = row.function(setting, run)
    unknown = sorted(set(result) - {"measured", "curves", "notes"})
    measured = records.plain({name: value for name, value in result.get("measured", {}).items() if value is not None})
    curves = records.plain(result.get("curves", {}))
    if run.smoke:  # of networks that learnt nothing some figures are not defined
        measured = {name: value for name, value in measured.items() if math.isfinite(value)}
        curves = {name: curve for name, curve in curves.items() if not broken_in(curve)}
    broken = [name for name, value in {**measured, **curves}.items() if broken_in(value)]
    if unknown or broken or not (measured or run.smoke):
        raise ValueError(
            f"Row {row.name} must return finite numbers as 'measured', and may return 'curves' and 'notes'; received "
            f"{', '.join(result)}, unknown {unknown}, not finite {broken}."
        )
    run.forget_steps()
    return {
        "row": row.name,
        "profile": args.profile,
        "seed": seed,
        "key": key_of(setting, seed, dtype),
        "measured": {name: float(value) for name, value in measured.items()},
        "curves": curves,
        "notes": result.get("notes", ""),
        "figures": run.figures,
        "dtype": dtype,
        "setting": sizes(vars(setting)),
        "models": run.models,
        "data": run.fingerprints,
        "seconds": round(time.perf_counter() - started + run.seconds, 1),
        "command": command(row, args, seed, dtype),
        **records.environment(),
    }


def broken_in(value):
    """Whether a number, or any in lists and dicts, is not finite."""
    if isinstance(value, dict):
        return any(map(broken_in, value.values()))
    if isinstance(value, int | float):
        return not math.isfinite(value)
    return value is None or any(map(broken_in, value))


def verify(row, args):
    """Run a row again from nothing, with the seeds of its records, and compare within their spread; 0 if all agree."""
    stored = records.of_row(args.results, row.name, args.profile)
    if not stored:
        sys.exit(f"No record of {row.name} in profile {args.profile} in {args.results}: run it first.")
    tolerances = spread([record["measured"] for _, record in stored])
    if args.seeds is not None:
        stored = [(path, record) for path, record in stored if record["seed"] in args.seeds]
    work, differing = pathlib.Path(args.work) / "verify", 0
    shutil.rmtree(work, ignore_errors=True)
    for path, record in stored:
        announce(row, args, record["seed"], record["dtype"])
        where = Places(args.data_dir, args.weights, work, work / "rows", work / "figures")
        again = measure(row, args, record["seed"], record["dtype"], where)["measured"]
        for name, before in record["measured"].items():
            apart = abs(again.get(name, math.nan) - before)
            agrees = apart <= tolerances[name]
            differing += not agrees
            print(
                f"{row.name} seed {record['seed']} {name}: {before:.6g} in {path.name}, {again.get(name):.6g} now, "
                f"{apart:.2g} apart of at most {tolerances[name]:.2g}: {'agrees' if agrees else 'DIFFERS'}"
            )
    return 1 if differing else 0


def spread(measured):
    """How far a repetition may be from the record, by name: three standard deviations over seeds, at least 1 %.

    Args:
        measured: list of dicts from names to floats.

    Returns:
        dict from names to float.
    """
    summary = verdicts.summary(measured)
    return {name: max(3 * (std or 0), 0.01 * abs(mean), 1e-6) for name, (mean, std, _) in summary.items()}


def announce(row, args, seed, dtype):
    """Say how long a seed will take here: what it took here before, or what the TOML file says of another machine.

    Returns:
        float, the minutes; None if they are not known.
    """
    hardware, minutes, how = records.hardware(), row.minutes(args.profile), "about"
    before = [each for _, each in records.of_row(args.results, row.name, args.profile) if each["hardware"] == hardware]
    if before:
        minutes, how = before[-1]["seconds"] / 60, "as before"
    elif args.profile == "smoke":
        minutes, how = None, "seconds"
    elif minutes is not None and hardware["accelerator"] is None:
        minutes = speed.minutes_here(minutes, dtype)
    told = how if minutes is None else f"{how} {minutes:.1f} minutes"
    print(f"{row.name} {row.table['title']}, profile {args.profile}, seed {seed}: {told}", flush=True)
    return minutes


@functools.cache
def policy(dtype):
    """The dtype policy of trainings; ``auto`` measures."""
    if dtype != "auto":
        return dtype
    best, told = speed.faster_policy()
    print(told, flush=True)
    return best


def places(args):
    """Where things are."""
    return Places(args.data_dir, args.weights, args.work, args.results, args.results.parent / "figures")


def command(row, args, seed, dtype):
    """The command that measures a seed of a row, without the paths of this machine."""
    text = f"python examples/reproduce/run.py --only {row.name} --profile {args.profile} --seeds {seed}"
    if dtype != "float32":
        text += f" --dtype {dtype}"
    if args.profile == "smoke":
        return text
    text += " --data-dir FOLDER" if args.data_dir else ""
    return text + (" --weights FOLDER" if args.weights else "")
