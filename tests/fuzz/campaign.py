"""Many calls, in a process of their own with limits of memory and time, which is started anew when it dies."""

import argparse
import collections
import json
import os
import pathlib
import re
import resource
import select
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

FINE = ("right", "documented")
_IDLE = 60  # times the limit of computing that a process may wait for the machine
_EACH = 50  # calls of everything, at least


def main(arguments=None):
    """Run the command; returns its exit status, 1 if anything is not as it has to be."""
    parser = argparse.ArgumentParser(prog="python tests/fuzz", description=__doc__)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], help="parts of names of what is called")
    parser.add_argument("--replay", type=int, help="number of a call that is run here, with its traceback")
    parser.add_argument("--limit", type=float, default=60, help="seconds of computing for a call")
    parser.add_argument("--memory", type=float, default=6, help="GiB beyond those of the process when it starts")
    parser.add_argument("--shown", type=int, default=3, help="examples of every kind of fault")
    parser.add_argument("--worker", type=int, nargs=2, help=argparse.SUPPRESS)
    settings = parser.parse_args(arguments)
    if settings.replay is not None:
        return _replay(settings)
    if settings.worker is not None:
        return _work(settings)
    started = time.perf_counter()
    tally = Tally(settings.shown)
    for number, record in _records(settings):
        if tally.add(number, record):
            print(f"after {tally.total} calls, --replay {number}  {record}", file=sys.stderr, flush=True)
    print(tally)
    print(f"{tally.total} calls in {time.perf_counter() - started:.0f} s, seed {settings.seed}")
    return 0 if tally.is_clean and tally.total == settings.calls else 1


class Tally:
    """Counts of outcomes, and examples of every kind of fault."""

    def __init__(self, shown=3):
        self.shown, self.counts = shown, collections.Counter()
        self.called, self.seconds = collections.Counter(), collections.Counter()
        self.faults = collections.defaultdict(list)

    @property
    def total(self):
        return sum(self.counts.values())

    @property
    def is_clean(self):
        return not self.faults

    def add(self, number, record):
        """Count the outcome of a call; returns whether it is a fault of a kind not seen before."""
        self.counts[record["kind"]] += 1
        self.called[record["name"]] += 1
        self.seconds[record["name"]] += record.get("seconds", 0)
        if record["kind"] not in FINE:
            detail = re.sub(r"0x[0-9a-f]+|\d+", "N", record["detail"])[:110]
            examples = self.faults[record["kind"], record["name"], detail]
            examples.append((number, record))
            return len(examples) == 1
        return False

    def __str__(self):
        lines = [f"{kind:14}{count:7}" for kind, count in self.counts.most_common()]
        lines.append(f"{len(self.called)} things, each called {min(self.called.values(), default=0)} times or more")
        slowest = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in self.seconds.most_common(8))
        lines.append(f"slowest: {slowest}")
        for (kind, name, _), examples in sorted(self.faults.items()):
            lines.append(f"{kind} x{len(examples)}  {name}: {examples[0][1]['detail']}")
            lines += [f"    --replay {number}  {record['call']}" for number, record in examples[: self.shown]]
        return "\n".join(lines)


def plan(subjects, calls):
    """Which Subject every call is of: the same number of all, at most ``_EACH``; of the rest more of the cheap ones."""
    import numpy as np

    each = min(_EACH, calls // len(subjects))
    weights = np.array([1 / subject.cost for subject in subjects])
    random = np.random.default_rng(0)
    rest = random.choice(len(subjects), calls - each * len(subjects), p=weights / weights.sum())
    numbers = np.concatenate([np.tile(np.arange(len(subjects)), each), rest])
    return [subjects[k] for k in random.permutation(numbers)]


def _subjects(settings):
    from fuzz.subjects import subjects

    return [each for each in subjects() if not settings.only or any(part in each.name for part in settings.only)]


def _records(settings):
    """Pairs of the number of a call and what came of it, of processes that are started anew when they die."""
    number = 0
    while number < settings.calls:
        reading, writing = os.pipe()
        own = ["--calls", str(settings.calls), "--seed", str(settings.seed), "--memory", str(settings.memory)]
        own += ["--only", *settings.only, "--worker", str(writing), str(number)]
        command = [sys.executable, str(pathlib.Path(__file__).parent), *own]
        process = subprocess.Popen(command, pass_fds=[writing])
        os.close(writing)
        begun, hung = None, False
        with os.fdopen(reading, "rb", buffering=0) as pipe:
            for record in _lines(pipe, process.pid, settings.limit):
                if record is None:
                    hung = True
                    process.kill()
                    break
                if "begun" in record:
                    begun = record
                else:
                    yield record["number"], record
                    number, begun = record["number"] + 1, None
        status = process.wait()
        if number < settings.calls:
            if begun is None:
                raise RuntimeError(f"A process ended with {status} before call {number}.")
            how = f"no answer after {settings.limit} s of computing" if hung else f"the process ended with {status}"
            yield number, {**begun, "kind": "hang" if hung else "abort", "detail": how}
            number += 1


def _lines(pipe, pid, limit):
    """Records of the pipe of a process; None when it computes too long, or does nothing for very long."""
    waiting, computed, heard = b"", _computed(pid), time.monotonic()
    while True:
        if not select.select([pipe], [], [], 1)[0]:
            if _computed(pid) - computed > limit or time.monotonic() - heard > _IDLE * limit:
                yield None
                return
            continue
        more = pipe.read(65536)
        if not more:
            return
        computed, heard = _computed(pid), time.monotonic()
        *lines, waiting = (waiting + more).split(b"\n")
        yield from map(json.loads, lines)


def _computed(pid):
    """Seconds that a process has computed, which do not depend on what else the machine does; 0 if it has ended."""
    try:
        user, system = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    except OSError:
        return 0.0
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _work(settings):
    from fuzz import calls

    pipe, start = settings.worker
    planned = plan(_subjects(settings), settings.calls)
    _limit_memory(settings.memory)
    with os.fdopen(pipe, "w") as out:
        for number in range(start, settings.calls):
            call = calls.drawn(planned[number], settings.seed, number)
            record = {"number": number, "name": call.subject.name, "call": str(call)}
            print(json.dumps({**record, "begun": True}), file=out, flush=True)
            started = time.perf_counter()
            outcome = calls.judged(call)
            seconds = round(time.perf_counter() - started, 4)
            record |= {"kind": outcome.kind, "detail": outcome.detail[:300], "seconds": seconds}
            print(json.dumps(record), file=out, flush=True)
    return 0


def _limit_memory(gibibytes):
    import keras

    keras.ops.zeros((2, 2)) @ keras.ops.zeros((2, 2))  # what TensorFlow reserves when it begins
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + int(gibibytes * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _replay(settings):
    from fuzz import calls

    call = calls.drawn(plan(_subjects(settings), settings.calls)[settings.replay], settings.seed, settings.replay)
    print(call)
    print(calls.judged(call))
    arguments = {name: value.make() for name, value in call.values.items()}
    print(call.subject.call(**arguments))
    return 0
