"""Chapter 2, explanations of ConvNets: what tells the maps of two classes apart, and how well maps point."""

import time

import keras
import numpy as np

from chapters.chapter_2_subjects import subject  # first, because it finds the other examples

# isort: split
import neurons
from rows import row

from chapters.figures import save
from chapters.plain import in_percent
from keras_capsvit import evaluate, explain, plot


@row("2.F1")
def of_several_classes(setting, run):
    """LRP of the three highest classes and of several together: how alike they are."""
    seen = subject(setting, run)
    order = _highest(seen)
    lrp, rng = explain.LRP(seen.model, "thesis", input_range=seen.pixels), np.random.default_rng(run.seed)
    # Of classes of the highest scores, whose sum is above 0; relevance of a sum is the sum of relevance.
    several = np.stack([rng.choice(row[: setting.top], setting.several, replace=False) for row in order])
    maps = np.concatenate([lrp(seen.x, order[:, :3]), lrp(seen.x, several).sum(axis=1, keepdims=True)], axis=1)
    pairs = {"first and second": (0, 1), "first and third": (0, 2), "first and several": (0, 3)}
    measured = {name: float(cosine(maps[:, a], maps[:, b]).mean()) for name, (a, b) in pairs.items()}
    shown = slice(setting.shown)
    titles = [seen.names(each) for each in order[shown, 0]]
    named = dict(zip(("first", "second", "third", "several"), np.moveaxis(maps[shown], 1, 0), strict=True))
    save(plot.comparison(seen.images[shown], named, titles=titles), run.figure("maps"))
    return {"measured": measured, "notes": f"Mean cosine similarity of maps, of {len(seen.x)} images."}


@row("2.F3")
@row("2.F3.FC")
def of_two_classes(setting, run):
    """LRP, CLRP1 and CLRP2 of two classes: how alike the two maps are."""
    seen = subject(setting, run)
    classes = np.tile(setting.classes, (len(seen.x), 1)) if setting.classes else _highest(seen, 2)
    shown, measured, drawn = min(setting.shown, len(seen.x)), {}, {}
    for rules in setting.rules:
        for name, explainer in seen.relevance(rules).items():
            maps, label = explainer(seen.x, classes), name if rules == "thesis" else f"{name} by {rules}"
            measured[label] = float(cosine(maps[:, 0], maps[:, 1]).mean())
            drawn[label] = maps[:shown].reshape(-1, *maps.shape[2:])
    titles = [seen.names(each) for each in classes[:shown].ravel()]
    images = np.repeat(seen.images[:shown], 2, axis=0)
    save(plot.comparison(images, drawn, titles=titles), run.figure("maps"))
    return {"measured": measured, "notes": f"Mean cosine similarity of the two maps, of {len(seen.x)} images."}


@row("2.F4")
def pointing(setting, run):
    """Share of maps whose foreground, which holds a share of their energy, lies on the object."""
    seen = subject(setting, run)
    measured, curves = {}, {}
    for name, explainer in seen.explainers().items():

        def measure(explainer=explainer):
            maps = explainer(seen.x, seen.classes)
            return evaluate.pointing_game(maps, seen.masks, threshold=setting.energies).mean(axis=0).tolist()

        hits = [in_percent(each) for each in run.step(name, measure)]
        curves[name] = {"x": setting.energies, "y": hits}
        measured |= {f"{name}, {kept} %": hit for kept, hit in zip(setting.energies, hits, strict=True)}
        measured[name] = float(np.mean(hits))
    return {"measured": measured, "curves": curves, "notes": _about(seen)}


@row("2.T1")
def ablation(setting, run):
    """Drop of the class's score when the mean replaces the square around a map's maximum."""
    seen, measured = subject(setting, run), {}
    for name, explainer in seen.explainers().items():

        def measure(explainer=explainer):
            maps = explainer(seen.x, seen.classes)
            how = {"mean": seen.mean, "size": setting.square, "target": seen.classes}
            return float(evaluate.ablation_drop(seen.model, seen.x, maps, **how).mean())

        measured[name] = run.step(name, measure)
    return {"measured": measured, "notes": _about(seen)}


@row("2.F5")
def of_neurons(setting, run):
    """CLRP2 of the most active neurons of a layer, and what ablating the patch of each does to all."""
    seen, own, others, own_is_highest, drawn = subject(setting, run), [], [], [], None
    layer = neurons.activations(seen.model, setting.layer)
    clrp = explain.CLRP(seen.model, "negated", input_range=seen.pixels, start=setting.layer)
    lrp, alike = explain.LRP(seen.model, input_range=seen.pixels, start=setting.layer), {"LRP": [], "CLRP2": []}
    for x, image in zip(seen.x, seen.images, strict=True):
        before = layer.predict_on_batch(x[None])[0]
        ids = np.argsort(-before)[: setting.neurons]
        ids = ids[before[ids] > 0]
        maps = clrp(x[None], ids[None])[0]
        for name, several in (("LRP", lrp(x[None], ids[None])[0]), ("CLRP2", maps)):
            alike[name].append(cosine(several[:-1], several[1:]).mean())

        def activations(images, ids=ids):
            return layer.predict_on_batch(images)[:, ids]

        how = {"mean": seen.mean, "size": setting.square, "relative": True}
        drops = evaluate.neuron_ablation(activations, x[None], maps[:, None], **how)[0]
        diagonal = np.eye(len(ids), dtype=bool)
        own.append(drops[diagonal].mean())
        others.append(drops[~diagonal].mean())
        own_is_highest.append((drops.argmax(axis=1) == np.arange(len(ids))).mean())
        if drawn is None:
            drawn = neurons.draw(image, maps, drops, [str(each) for each in ids])
    save(drawn, run.figure("neurons"))
    measured = {
        "drop of the own neuron": in_percent(np.mean(own)),
        "drop of other neurons": in_percent(np.mean(others)),
    }
    measured |= {"rows with the highest drop on the diagonal": in_percent(np.mean(own_is_highest))}
    measured["expected of maps that tell nothing"] = 100 / len(ids)
    measured |= {f"similarity of {name} maps": in_percent(np.mean(each)) for name, each in alike.items()}
    return {"measured": measured, "notes": f"The {setting.neurons} most active neurons in {len(seen.x)} images."}


@row("2.S")
def seconds(setting, run):
    """Seconds for one explanation of one image, after the first, in which functions are compiled."""
    seen, measured = subject(setting, run), {}
    x, ids = seen.x[:1], seen.classes[:1]
    for name, explainer in seen.relevance().items():

        def measure(explainer=explainer):
            explainer(x, ids)
            times = []
            for _ in range(setting.rounds):
                started = time.perf_counter()
                explainer(x, ids)
                times.append(time.perf_counter() - started)
            return float(np.median(times))

        measured[name] = run.step(name, measure)
    return {
        "measured": measured,
        "notes": f"{seen.model.name}, {seen.model.count_params():,} parameters, {keras.backend.backend()}.",
    }


def cosine(first, second):
    """Cosine similarity of maps ``(b, H, W)``, an array ``(b,)``; 0 where one is all zeros."""
    first, second = (each.reshape(len(each), -1).astype("float64") for each in (first, second))
    sizes = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.divide((first * second).sum(axis=1), sizes, where=sizes > 0, out=np.zeros(len(first)))


def _highest(seen, count=None):
    """Classes ``(b, count)`` of the highest scores, the highest first."""
    return np.argsort(-seen.model.predict(seen.x, batch_size=32, verbose=0), axis=1)[:, :count]


def _about(seen):
    right = in_percent((_highest(seen, 1)[:, 0] == seen.classes).mean())
    inside = in_percent(seen.masks.mean())
    return f"{len(seen.x)} objects on {inside:.0f} % of the pixels, {right:.0f} % classified correctly."
