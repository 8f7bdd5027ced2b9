"""Attacks, explains and measures many images, in this process or in several by Ray Data, with the same figures.

    python examples/evaluate_many.py digits --model saved_models/digits_gracapsnet --attack PGD --epsilon 0.1
    python examples/evaluate_many.py PICTURES --model model.keras --explain GradCAM --metrics aopc --workers 8
    python examples/evaluate_many.py cifar10 --model model.keras --attack APGD --epsilon 0.03137 --workers 4 \
        --address auto                                                              # on a Ray cluster that is running

SOURCE is a data set of TFDS (or digits), or a folder with a folder of pictures for each class, named by its number or
in the order of the names. MODEL is as in autoattack.py. Images are read, attacked and explained in blocks, each by the
process that gets it, so that nothing but records goes between processes, and memory does not grow with the number of
images. What an attack draws for an image depends on the seed and the image's number, and batches are the same for any
number of workers; so are the records. A worker that dies is replaced, and its block done again. Interrupted, the same
command goes on after the blocks that are there.

Writes OUT/records.jsonl, or .parquet, a record for each image in order, and OUT/summary.json, and prints that. Several
processes need ``pip install "ray[data]"``.
"""

import argparse
import hashlib
import json
import os
import pathlib
import shutil
import time

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import any_model
import keras
import numpy as np

from keras_capsvit import attacks, data, evaluate, explain, taps
from keras_capsvit.evaluate.table import versions
from keras_capsvit.files import read_json, write_text

ATTACKS = ("FGSM", "BIM", "MIM", "PGD", "APGD", "FAB", "Square")
METRICS = {
    "aopc": lambda model, x, y, maps: evaluate.aopc(model, x, maps, target=y).area,
    "insertion": lambda model, x, y, maps: evaluate.insertion(model, x, maps, target=y).area,
    "deletion": lambda model, x, y, maps: evaluate.deletion(model, x, maps, target=y).area,
    "sparseness": lambda model, x, y, maps: evaluate.sparseness(maps),
    "complexity": lambda model, x, y, maps: evaluate.complexity(maps),
}
# Options that say where and how fast, not what: an interrupted run may go on with others.
ELSEWHERE = ("out", "workers", "address", "format", "data_dir")


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SOURCE", help="digits, mnist, cifar10, ..., or a folder of folders")
    parser.add_argument("--model", type=pathlib.Path, required=True)
    any_model.add_options(parser)
    parser.add_argument("--split", default="test", help="of a data set")
    parser.add_argument("--data-dir", help="where the TFDS folders are")
    parser.add_argument("--examples", type=int, help="the first so many; all if not given")
    parser.add_argument("--attack", choices=ATTACKS)
    parser.add_argument("--epsilon", type=float, help="radius, in pixels of [0, 1]")
    parser.add_argument("--attack-settings", type=json.loads, default={}, help="JSON of further ones, such as steps")
    parser.add_argument("--explain", metavar="EXPLAINER", help="class of keras_capsvit.explain, such as GradCAM")
    parser.add_argument("--explain-settings", type=json.loads, default={}, help="JSON of its settings")
    parser.add_argument("--metrics", nargs="+", choices=list(METRICS), default=["aopc"], help="of the explanations")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--block", type=int, default=500, help="images that a worker gets at a time")
    parser.add_argument("--workers", type=int, default=0, help="processes of Ray; 0 for this one alone")
    parser.add_argument("--address", help="of a Ray cluster, or auto; one is started here if not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--format", choices=("jsonl", "parquet"), default="jsonl")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("saved_models") / "evaluate_many")
    args = parser.parse_args(arguments)
    any_model.check_options(parser, args)
    if (args.attack is None) != (args.epsilon is None):
        parser.error("give both --attack and --epsilon, or none")
    if args.explain is not None and not isinstance(getattr(explain, args.explain, None), type):
        parser.error(f"{args.explain} is no explainer; there are {', '.join(explain.__all__)}")
    if args.attack is None and args.explain is None:
        parser.error("give --attack or --explain, or both")
    if args.block < 1 or args.block % args.batch_size:
        parser.error("give a --block of whole batches")
    return args


class DataSet:
    """A data set by name, read as ``data.Pictures`` are.

    Args:
        args: options of this script.
        shape: ints ``(H, W, C)`` that the model takes, or None.

    Attributes:
        labels: int array ``(n,)``, class ids.
    """

    def __init__(self, args, shape):
        self._args, self._shape = args, shape
        stream = data.load(args.source, split=args.split, data_dir=args.data_dir, batch_size=1000)
        self.labels = np.concatenate([y for _, y in stream.as_numpy_iterator()])

    def read(self, numbers):
        """Images ``(b, H, W, C)`` in [0, 1] and class ids ``(b,)`` by their numbers, which follow one another."""
        start, count = int(numbers[0]), len(numbers)
        where = {"data_dir": self._args.data_dir, "batch_size": count}
        if self._args.source == "digits":
            stream = data.load("digits", split=self._args.split, **where).unbatch().skip(start).batch(count)
        else:
            stream = data.load(self._args.source, split=f"{self._args.split}[{start}:{start + count}]", **where)
        x, y = next(stream.as_numpy_iterator())
        if x.shape[1:] != self._shape:
            raise SystemExit(
                f"Expected images {self._shape}, which the model takes; {self._args.source} has {x.shape[1:]}."
            )
        return x, y


def source_of(args, shape=None):
    """Where images come from; to count them their shape does not matter."""
    if not pathlib.Path(args.source).is_dir():
        return DataSet(args, shape)
    try:
        return data.Pictures(args.source, shape or (1, 1, 1))
    except ValueError as error:
        raise SystemExit(str(error)) from None


def images_of(args, source):
    """How many images are to be measured."""
    return min(len(source.labels), args.examples or len(source.labels))


def filled(rows, length):
    """Numbers of rows, the last of them repeated up to a length."""
    return rows[np.minimum(np.arange(length), len(rows) - 1)]


class Measure:
    """Everything that is measured of a block of images; what a worker holds."""

    def __init__(self, args):
        self._args = args
        self._model = any_model.model_of(args, args.source)
        self._low, self._high = any_model.pixel_range(args, self._model)
        self._source = source_of(args, tuple(self._model.input_shape[1:]))
        self._attack = self._explainer = None
        if args.attack:
            radius, bounds = args.epsilon * (self._high - self._low), (self._low, self._high)
            kind, settings = getattr(attacks, args.attack), {"bounds": bounds, **args.attack_settings}
            if "seed" in kind.__dataclass_fields__:
                settings = {"seed": args.seed, **settings}
            self._attack = kind(radius, **settings)
        if args.explain:
            self._explainer = getattr(explain, args.explain)(self._model, **args.explain_settings)

    def block(self, start):
        """Records of a block by the number of its first image: a dict of arrays."""
        count = min(self._args.block, images_of(self._args, self._source) - start)
        numbers, size = start + np.arange(count), self._args.batch_size
        x, y = self._source.read(numbers)
        x = (self._low + x * (self._high - self._low)).astype("float32")
        # Batches are equally large: else the last digits would depend on the sizes that a process has met before.
        rows = filled(np.arange(count), -(-count // size) * size)
        parts = [self._batch(*(each[rows[k : k + size]] for each in (x, y, numbers))) for k in range(0, count, size)]
        return {name: np.concatenate([part[name] for part in parts])[:count] for name in parts[0]}

    def _batch(self, x, y, numbers):
        predicted = taps.predictions(self._model, x)
        records = {"number": numbers, "label": y, "predicted": predicted, "correct": predicted == y}
        if self._attack is not None:
            records |= self._attacked(x, y, numbers, predicted == y)
        if self._explainer is not None:
            maps = np.asarray(self._explainer(x, predicted))
            records |= {name: METRICS[name](self._model, x, predicted, maps) for name in self._args.metrics}
        return records

    def _attacked(self, x, y, numbers, right):
        images, fooled = x.copy(), np.zeros(len(x), bool)
        if right.any():
            rows = filled(np.flatnonzero(right), len(x))
            images[rows] = self._attack(self._model, x[rows], y[rows], numbers=numbers[rows])
            fooled = right & (taps.predictions(self._model, images) != y)
        norms = evaluate.perturbation_norms(x, images)
        return {"fooled": fooled, "l2": norms["l2"], "linf": norms["linf"]}


class Worker:
    """Measure as Ray Data calls it: a batch of one block's number gives its records."""

    def __init__(self, args):
        self._measure = Measure(args)

    def __call__(self, batch):
        (start,) = batch["start"]
        return self._measure.block(int(start))


def by_ray(args, starts):
    """Records of blocks, in the order in which workers of Ray finish them."""
    try:
        import ray
    except ImportError as error:
        raise SystemExit('--workers needs Ray: pip install "ray[data]".') from error
    # With as many logical processors as actors nothing would be left to feed them, and Ray Data would wait for ever.
    started = {"num_cpus": args.workers + 1, "include_dashboard": False, "log_to_driver": False}
    folder = str(pathlib.Path(__file__).parent)  # where the workers find this file
    paths = [folder, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(paths), "TF_CPP_MIN_LOG_LEVEL": "2"}}
    ray.init(address=args.address, runtime_env=environment, **({} if args.address else started))
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        blocks = ray.data.from_items([{"start": start} for start in starts], override_num_blocks=len(starts))
        pool = ray.data.ActorPoolStrategy(size=args.workers)
        results = blocks.map_batches(Worker, fn_constructor_args=(args,), batch_size=1, compute=pool)
        yield from results.iter_batches(batch_size=None, prefetch_batches=0)
    finally:
        ray.shutdown()


def in_this_process(args, starts):
    """Records of blocks, in this process."""
    measure = Measure(args)
    for start in starts:
        yield measure.block(start)


def lines(records):
    """Records as text of JSON lines."""
    columns = {name: values.tolist() for name, values in records.items()}
    return "".join(
        json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in zip(*columns.values(), strict=True)
    )


def summary(args, path):
    """What the records say, read one by one."""
    sums, count = {}, 0
    with path.open() as file:
        for line in file:
            count += 1
            for name, value in json.loads(line).items():
                sums[name] = sums.get(name, 0.0) + float(value)
    means = {name: total / count for name, total in sums.items()}
    report = {"images": count, "accuracy": means["correct"]}
    if args.attack:
        withstood = (sums["correct"] - sums["fooled"]) / count
        report |= {"robust_accuracy": withstood, "attack": args.attack, "epsilon": args.epsilon}
    if args.explain:
        report |= {"explainer": args.explain, **{name: means[name] for name in args.metrics}}
    return report


def model_digest(path):
    """SHA-256 of a model's file, or of all files of its folder with their names."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(str(file.relative_to(path)).encode())
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def settings_of(args):
    """What the records depend on, as JSON keeps it: the model as it is now, not only where it lies."""
    settings = {name: value for name, value in vars(args).items() if name not in ELSEWHERE}
    about = {"model_sha256": model_digest(args.model), "versions": versions()}
    return json.loads(json.dumps({**settings, **about}, default=str))


def begin(args, folder):
    """Make the folder of blocks, or refuse one of another run."""
    about, settings = folder / "settings.json", settings_of(args)
    if about.exists():
        before = read_json(about, "the settings of a run")
        differing = [name for name in settings if settings[name] != before.get(name)]
        if differing:
            raise SystemExit(
                f"Expected to go on with the run in {folder}, which has other {', '.join(differing)}. Give another "
                "--out, or delete it."
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_text(about, json.dumps(settings, indent=1))


def main():
    args = parse()
    folder = args.out / "blocks"
    begin(args, folder)
    count = images_of(args, source_of(args))
    starts = range(0, count, args.block)
    paths = {start: folder / f"{start:09d}.jsonl" for start in starts}
    left = [start for start in starts if not paths[start].exists()]
    bar, started = keras.utils.Progbar(count, unit_name="image"), time.perf_counter()
    done = count - sum(min(args.block, count - start) for start in left)
    bar.update(done)
    for records in (by_ray if args.workers else in_this_process)(args, left) if left else ():
        write_text(paths[int(records["number"][0])], lines(records))
        done += len(records["number"])
        bar.update(done)
    seconds = time.perf_counter() - started
    whole = args.out / "records.jsonl"
    with whole.open("w") as file:
        for start in starts:
            file.write(paths[start].read_text())
    report = {
        **summary(args, whole),
        "seconds": round(seconds, 1),
        "workers": args.workers,
        "options": settings_of(args),
    }
    if args.format == "parquet":
        import pyarrow.json
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.json.read_json(whole), args.out / "records.parquet")
        whole.unlink()
    write_text(args.out / "summary.json", json.dumps(report, indent=1) + "\n")
    shutil.rmtree(folder)
    print(json.dumps({name: value for name, value in report.items() if name != "options"}, indent=1))


if __name__ == "__main__":
    main()
