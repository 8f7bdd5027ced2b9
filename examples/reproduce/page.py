"""REPRODUCTION.md and REPRODUCTION.html: published beside measured, with verdicts, made from the records."""

import base64
import collections
import io
import os
import pathlib
import statistics

import earlier
import jinja2
import PIL.Image
import records
import rows
import verdicts
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from keras_capsvit.files import replacing, write_text

FOLDER = pathlib.Path(__file__).parent
PROFILES = ("full", "gpu", "cpu")  # the first that has records gives the verdict
LARGEST = 3_000_000  # bytes of the page, which is committed
EMBEDDED = 60_000  # bytes of a picture that is embedded as it is
WORDS = (verdicts.REPRODUCED, verdicts.HOLDS, verdicts.FAILS, verdicts.NOT_RUN)
CHAPTERS = {
    2: "Explanations of ConvNets by contrastive relevance",
    3: "Graph capsule networks",
    4: "Capsule networks and affine transformations",
    5: "Capsule networks beside ConvNets",
    6: "Vote-Attack",
    7: "Vision transformers and patches",
}


def write(results, out=FOLDER):
    """Write both pages, and pictures of the curves; returns 0.

    Args:
        results: path of the folder of records.
        out: path of the folder of the pages, in which ``results`` lies.
    """
    results, out = pathlib.Path(results), pathlib.Path(out)
    figures = results.parent / "figures"
    entries = [entry(row, results, figures) for row in rows.registry().values()]
    chapters = collections.defaultdict(list)
    for each in entries:
        chapters[each["chapter"]].append(each)
    counts = collections.Counter(each["verdict"].word for each in entries)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER / "templates"),
        autoescape=jinja2.select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"number": number, "embedded": lambda name: embedded(figures / name)}
    environment.globals |= {"relative": lambda path: pathlib.Path(os.path.relpath(path, out)).as_posix()}
    how = {"chapters": dict(chapters), "titles": CHAPTERS, "counts": counts, "words": WORDS, "total": len(entries)}
    for name in ("REPRODUCTION.md", "REPRODUCTION.html"):
        text = environment.get_template(name).render(figures=figures, **how)
        write_text(out / name, text.rstrip() + "\n")
        print(f"Wrote {out / name}: {len(text) / 1e3:.0f} kB")
        if len(text) > LARGEST:
            raise ValueError(f"{name} has {len(text):,} bytes, more than {LARGEST:,}: make the pictures smaller.")
    return 0


def entry(row, results, figures):
    """What the pages say of a row, a dict."""
    by_profile = {name: [each for _, each in records.of_row(results, row.name, name)] for name in PROFILES}
    parts = [part(row, name, stored, results, figures) for name, stored in by_profile.items() if stored]
    before = [of_earlier(row, each) for each in row.table.get("earlier", ())]
    measured = [each["measured"] for each in next((stored for stored in by_profile.values() if stored), [])]
    verdict = verdicts.verdict(row.table, measured)
    if not measured and before:
        verdict = verdicts.verdict(row.table, before[0]["measured"])
    if verdict.word == verdicts.NOT_RUN and not measured and not before:
        why = row.table.get("not_run") or f"not measured yet; needs {', '.join(row.needs('cpu')) or 'nothing'}"
        verdict = verdicts.Verdict(verdicts.NOT_RUN, why)
    return {
        "name": row.name,
        "chapter": row.chapter,
        "table": {"unit": "", "finding": "", **row.table},
        "verdict": verdict,
        "brief": verdict.why.split("; not:")[0],
        "parts": parts,
        "earlier": before,
        "published": row.table["published"],
    }


def part(row, profile, stored, results, figures):
    """What the seeds of a profile measured, a dict."""
    setting, record = row.setting(profile), stored[0]
    drawn = [name for name in record["figures"] if (figures / name).exists()]
    curves = draw(row, profile, [each["curves"] for each in stored], figures)
    return {
        "profile": profile,
        "scaled": getattr(setting, "scaled", ""),
        "lines": lines(row.table["published"], [each["measured"] for each in stored]),
        "seeds": [each["seed"] for each in stored],
        "records": [records.path_of(results, row.name, profile, each["seed"]) for each in stored],
        "figures": ([curves] if curves else []) + drawn,
        "command": record["command"],
        "minutes": statistics.fmean(each["seconds"] for each in stored) / 60,
        "hardware": record["hardware"],
        "dtype": record["dtype"],
        "commit": record["commit"],
        "notes": record["notes"],
    }


def of_earlier(row, source):
    """What an earlier script measured, a dict."""
    measured = earlier.read(source)
    return {
        "measured": measured,
        "lines": lines(row.table["published"], measured),
        "note": source.get("note", ""),
        "command": source["command"],
        "file": records.RESULTS / source["file"],
    }


def lines(published, measured):
    """Rows of a table ``(name, published or None, mean or None, standard deviation or None, seeds)``."""
    summary = verdicts.summary(measured)
    names = [*published, *(name for name in summary if name not in published)]
    return [(name, published.get(name), *summary.get(name, (None, None, 0))) for name in names]


def draw(row, profile, curves, figures):
    """A picture of curves, means over seeds; returns its name, or None where there are none."""
    if not any(curves):
        return None
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    ax = figure.subplots()
    for name in curves[0]:
        of_seeds = [_points(each[name]) for each in curves if name in each]
        length = min(len(y) for _, y in of_seeds)
        ys = [y[:length] for _, y in of_seeds]
        means = [statistics.fmean(values) for values in zip(*ys, strict=True)]
        x = of_seeds[0][0][:length]
        (line,) = ax.plot(x, means, marker=".", label=name)
        if len(ys) > 1:
            ends = [[end(values) for values in zip(*ys, strict=True)] for end in (min, max)]
            ax.fill_between(x, *ends, color=line.get_color(), alpha=0.15, linewidth=0)
    ax.set_xlabel(row.table.get("curve_x", ""), fontsize=8)
    ax.set_ylabel(row.table.get("curve_y", ""), fontsize=8)
    if all(float(value).is_integer() for line in ax.lines for value in line.get_xdata()):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.tick_params(labelsize=8)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=7, ncols=1 + (len(curves[0]) > 8), loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    name = f"{row.name}_{profile}_curves.png"
    with replacing(figures / name) as temporary:
        figure.savefig(temporary, dpi=90, metadata={"Software": None})
    return name


def number(value):
    """A number with four digits, a str; a dash for None."""
    if value is None:
        return "-"
    if value and abs(value) < 0.01:
        return f"{value:.2e}"
    return f"{value:.4g}"


def embedded(path):
    """A picture as a ``data:`` address; large ones smaller and compressed, because the file is linked beside it."""
    content, kind = path.read_bytes(), "png"
    if len(content) > EMBEDDED:
        with PIL.Image.open(path) as picture, io.BytesIO() as file:
            picture.thumbnail((1100, 1100))
            picture.convert("RGB").save(file, "webp", quality=80)
            content, kind = file.getvalue(), "webp"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _points(curve):
    if isinstance(curve, dict):
        return list(curve["x"]), list(curve["y"])
    return list(range(1, len(curve) + 1)), list(curve)
