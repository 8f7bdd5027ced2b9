"""Runs that take turns in one process: what the benchmarks share."""

import statistics
import time

import numpy as np


def add_clock(parser):
    """Option ``--processor``; ``clock`` of what the parser returns is for ``alternate``."""
    parser.add_argument(
        "--processor",
        action="store_const",
        dest="clock",
        const=time.process_time,
        default=time.perf_counter,
        help="seconds of the processor, for a busy machine",
    )


def noise(*shape):
    """Images of pixels in [0, 1], the same in every run."""
    return np.random.default_rng(0).uniform(size=shape).astype("float32")


def alternate(runs, rounds, warm_up=1, clock=time.perf_counter):
    """Seconds of every run by name, in turns, after rounds to trace and warm up.

    On a machine with other work ``clock=time.process_time``, the processor's seconds of all threads, is disturbed less.
    """
    times = {name: [] for name in runs}
    for turn in range(warm_up + rounds):
        for name, run in runs.items():
            started = clock()
            run()
            if turn >= warm_up:
                times[name].append(clock() - started)
    return times


def report(times):
    """Print medians, ranges and ratios to the first."""
    reference = statistics.median(next(iter(times.values())))
    width = max(18, *map(len, times))
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        print(f"  {name:{width}} {middle:8.3f} s ({min(seconds):.3f} to {max(seconds):.3f})  {middle / reference:6.3f}")
