"""An audit: the steps in order, each done once and kept, and the page, JSON and CSV of what they came to."""

import dataclasses
import html
import importlib
import json
import pathlib
import time
import warnings

from keras_capsvit import checks
from keras_capsvit.evaluate.table import Table, versions
from keras_capsvit.files import write_text
from keras_capsvit.report.kept import Kept
from keras_capsvit.report.page import check_template_library, page
from keras_capsvit.report.parts import PARTS, selected
from keras_capsvit.report.subject import Subject

PAGE, RESULTS = "audit.html", "audit.json"


@dataclasses.dataclass(frozen=True)
class Audit:
    """What an audit came to.

    Args:
        results: dict, everything that the page says, as JSON takes it: ``title``, ``subtitle``, ``settings``,
            ``versions``, ``command``, and ``parts``, of which each has ``steps`` with ``figures``, ``tables``,
            ``pictures``, ``sentences``, ``warnings``, ``left_out``, ``numbers`` (of images), ``seconds`` and ``how``.
        files: dict from names of pictures, ``"STEP/FILE"``, to bytes.
    """

    results: dict
    files: dict

    def __getitem__(self, name):
        """A figure by its name, such as ``"accuracy.accuracy.accuracy"``; None where nothing was measured."""
        figures = self.figures()
        if name not in figures:
            raise KeyError(f"There is no figure {name!r} in this audit; audit.figures() lists them.")
        return figures[name]

    def figures(self):
        """All figures, a dict from their names to values."""
        return {
            f"{step['name']}.{figure['name']}": figure["value"]
            for part in self.results["parts"]
            for step in part["steps"]
            for figure in step["figures"]
        }

    def page(self):
        """The page, a str of HTML that needs no other file."""
        return page(self.results, self.files)

    def write(self, out):
        """Write the page, the JSON, and every table as CSV.

        Args:
            out: path of a folder, which is made.

        Returns:
            Path of the page.
        """
        out = pathlib.Path(out)
        write_text(out / PAGE, self.page())
        write_text(out / RESULTS, json.dumps(self.results, indent=1, allow_nan=False) + "\n")
        for part in self.results["parts"]:
            for step in part["steps"]:
                for table in step["tables"]:
                    if table["rows"]:
                        Table(table["rows"]).to_csv(out / "tables" / f"{step['name']}.{table['name']}.csv")
        return out / PAGE

    def show(self, height=800):
        """The page in a notebook.

        Args:
            height: int, pixels.

        Raises:
            ImportError: outside of IPython.
        """
        try:
            display = importlib.import_module("IPython.display")
        except ImportError as error:
            raise ImportError("show() is for notebooks, which have IPython; elsewhere, write(folder).") from error
        display.display(display.HTML(self._frame(height)))

    def _repr_html_(self):
        return self._frame(800)

    def _frame(self, height):
        checks.positive_int("height", height)
        inside = html.escape(self.page(), quote=True)
        return f'<iframe title="Audit" style="width:100%;border:0" height="{height}" srcdoc="{inside}"></iframe>'


def audit(
    model,
    dataset,
    *,
    class_names=None,
    bounds=(0.0, 1.0),
    epsilon=8 / 255,
    norm="linf",
    effort="standard",
    only=None,
    skip=(),
    seed=0,
    out=None,
    name=None,
    command=None,
    on_step=None,
):
    """Look at a classifier from all sides: accuracy, explanations, how good these are, and robustness.

    Args:
        model: Keras model, what ``serving.load`` returned, or callable ``x (b, H, W, C) → scores (b, M)``.
        dataset: see ``evaluate.robustness``; images as the model takes them. It is read several times in one order.
        class_names: M strings, or None.
        bounds: pair, the range of pixels that the model takes: numbers, or sequences of one number per channel.
        epsilon: float > 0, radius of attacks relative to the range of pixels, as in pixels of [0, 1].
        norm: ``"linf"``, ``"l2"`` or ``"l1"``, of the attacks.
        effort: ``"quick"``, ``"standard"`` or ``"thorough"``, or an Effort: numbers of images and steps.
        only: names of parts or steps, out of PARTS and STEPS, to run; None for all. The limits are always told.
        skip: names of parts or steps to leave out.
        seed: int, of which images are drawn and of everything else that is.
        out: path of a folder that every step is kept in when it is done, and in which long ones go on after an
            interruption with a progress bar: the same call does not do it again. It is refused if it holds the audit of
            something else. ``Audit.write`` may write to the same folder. None to keep nothing.
        name: str, of the model; None for its own.
        command: str, the command line that the page gives as the way to repeat it.
        on_step: callable ``(name, number, count)`` that is told when a step begins; None for none.

    Returns:
        Audit.

    Raises:
        ImportError: without Jinja2, the extra ``report``.
        ValueError: before anything is measured, for no images, classes and names that are not those of the model,
            images outside the bounds or of another size, a data set that does not give the same images every time,
            unknown names of parts, and an ``out`` of another audit.
            What a single step refuses is not raised but told on the page.

    Example::

        audit = report.audit(model, (x, y), effort="quick", epsilon=0.1)
        audit.show()  # or audit.write("audit")
    """
    check_template_library()
    steps = selected(only, skip)
    out = None if out is None else pathlib.Path(out)
    settings = {"class_names": class_names, "bounds": bounds, "epsilon": epsilon, "norm": norm}
    work = None if out is None else out / "work"
    subject = Subject(model, dataset, effort=effort, seed=seed, work=work, name=name, **settings)
    kept = Kept(out, subject)
    results, files = {}, {}
    for number, step in enumerate(steps, 1):
        if on_step is not None:
            on_step(step.name, number, len(steps))
        result, pictures = kept.read(step) or kept.write(step, *_ran(step, subject, results))
        results[step.name] = result
        files |= {f"{step.name}/{file}": data for file, data in pictures.items()}
    return Audit(_results(subject, results, command), files)


def _ran(step, subject, results):
    """What a step came to as JSON keeps it, its pictures, and whether it was done and not refused."""
    started, complete = time.perf_counter(), True
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        try:
            section = step.run(subject, results)
            result, pictures = section.as_json(), section.files
        except (ValueError, ImportError, NotImplementedError) as error:
            complete, pictures = False, {}
            result = {"how": "", "figures": [], "sentences": [], "tables": [], "pictures": [], "numbers": None}
            result["left_out"] = [f"{step.title}: {error}"]
    told = list(dict.fromkeys(str(each.message) for each in caught))
    seconds = round(time.perf_counter() - started, 2)
    return {"name": step.name, "title": step.title, **result, "warnings": told, "seconds": seconds}, pictures, complete


def _results(subject, results, command):
    effort = subject.effort
    count = len(subject.predictions.label)
    parts = []
    for name, (title, about, steps) in PARTS.items():
        there = [results[step.name] for step in steps if step.name in results]
        if there:
            parts.append({"name": name, "title": title, "about": about, "steps": there})
    return {
        "title": f"Audit of {subject.name}",
        "subtitle": f"{count:,} images of {subject.classes:,} classes; attacks within ε = {subject.epsilon:.4g} of the "
        f"range of pixels ({subject.norm}); effort: {effort.name}.",
        "settings": {
            "epsilon": subject.epsilon,
            "norm": subject.norm,
            "effort": dataclasses.asdict(effort),
            "seed": subject.seed,
            "class_names": subject.names,
        },
        "versions": versions(),
        "command": command,
        "parts": parts,
    }
