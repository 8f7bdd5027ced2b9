"""Chapter 6, Vote-Attack: what attacks on class capsules and on votes leave of a CapsNet's accuracy."""

import numpy as np
from rows import row

from chapters import chapter_6_detection  # noqa: F401, rows of its own
from chapters import chapter_6_networks as networks
from chapters.figures import save
from chapters.plain import in_percent, known, without_nan
from keras_capsvit import attacks, data, evaluate, plot, taps


@row("6.T1")
@row("6.T1.SVHN")
def vote_attack(setting, run):
    """Robust accuracy of a ConvNet, and of a CapsNet attacked at its capsules and at its votes."""
    measured, examples = {}, run.data(setting.dataset, "test", setting.examples)
    for name, model in _pair(setting, run).items():
        table = attacked(setting, run, name, model, examples)
        measured |= {key: in_percent(each["robust_accuracy"]) for key, each in table.items()}
        measured[f"{name}, clean"] = in_percent(next(iter(table.values()))["accuracy"])
    return {"measured": known(measured), "notes": _of(examples)}


@row("6.T3")
def seconds(setting, run):
    """Milliseconds per adversarial example, of attacks that are compiled already, to the last step."""
    measured, examples = {}, run.data(setting.dataset, "test", setting.examples)
    for name, model in _pair(setting, run).items():
        for key, each in attacked(setting, run, name, model, examples, warm=True).items():
            per_example = each["seconds_per_example"]
            measured[key] = None if per_example is None else 1000 * per_example
    return {"measured": known(measured), "notes": _of(examples)}


@row("6.A")
def variants(setting, run):
    """PGD against the three ways of reading votes (Eq. 6.8 to 6.10)."""
    model, examples = networks.capsnet(setting, run), run.data(setting.dataset, "test", setting.examples)
    objectives = {order: lambda model, order=order: attacks.votes(model, order) for order in attacks.ORDERS}
    table = attacked(setting, run, "CapsNet", model, examples, names=["PGD"], objectives=objectives)
    return {
        "measured": {f"Eq. 6.{8 + n}": in_percent(each["robust_accuracy"]) for n, each in enumerate(table.values())}
    }


@row("6.T7")
def targeted(setting, run):
    """How often attacks bring about a class that was drawn for the image."""
    measured, examples = {}, run.data(setting.dataset, "test", setting.examples)
    for name, model in _pair(setting, run).items():
        targets = evaluate.random_targets(model.output_shape[-1], run.seed)
        for key, each in attacked(setting, run, name, model, examples, targets=targets).items():
            measured[key] = in_percent(each["success_rate"])
    return {"measured": known(measured), "notes": _of(examples)}


@row("6.T8")
def transfer(setting, run):
    """Whether examples made on one network fool the others."""
    models = {"VGG19": networks.vgg(setting, run)}
    models |= {"ResNet18" if name == "ResNet" else name: model for name, model in _pair(setting, run).items()}
    sources = {name: models[name] for name in ("VGG19", "ResNet18")}
    sources |= {name: objective(models["CapsNet"]) for name, objective in networks.CAPSULES.items()}
    examples = run.data(setting.dataset, "test", setting.examples)
    attack = networks.named_attacks(setting, ["PGD"])["PGD"]

    def measure():
        return without_nan(evaluate.transfer_matrix(models, attack, examples, sources=sources).rows)

    table = run.step("matrix", measure)
    measured = {f"{source} to {each['target']}": in_percent(each[source]) for each in table for source in sources}
    return {"measured": known(measured), "notes": _of(examples)}


@row("6.T9")
def rotated(setting, run):
    """PGD on images that were moved by up to two pixels and turned."""
    x, y = run.data(setting.dataset, "test", setting.examples)
    models, measured = _pair(setting, run), {}
    for angle in setting.rotations:
        moved = x
        if angle:
            how = {"rotation": angle, "translation": setting.translation}
            moved = np.asarray(data.affine.transform(x, run.seed, **how))
        for name, model in models.items():
            table = attacked(setting, run, f"{name} {angle}", model, (moved, y), names=["PGD"])
            measured[f"{name}, ±{angle}°"] = in_percent(next(iter(table.values()))["accuracy"])
            for key, each in table.items():
                measured[f"{key.removeprefix('PGD on ')}, ±{angle}°"] = in_percent(each["robust_accuracy"])
    return {"measured": known(measured), "notes": _of((x, y))}


@row("6.T10")
def affine(setting, run):
    """Attacks on affinely transformed digits, of networks trained on digits that were only moved."""
    measured = {}
    plain, moved = (run.data(name, "test", setting.examples) for name in (setting.dataset, setting.moved))
    for name, model in networks.plain_pair(setting, run).items():
        for kind, (x, y) in {"clean": plain, "transformed": moved}.items():
            measured[f"{name}, {kind}"] = in_percent((taps.predictions(model, x) == y).mean())
        for key, each in attacked(setting, run, name, model, moved).items():
            measured[key] = in_percent(each["robust_accuracy"])
    return {"measured": known(measured), "notes": _of(moved)}


@row("6.AA")
@row("6.AA.F")
@row("6.AA.C")
def auto_attack(setting, run):
    """AutoAttack's attacks on capsules and on votes: is the robustness of capsules obfuscated?"""
    model, examples = networks.capsnet(setting, run), run.data(setting.dataset, "test", setting.examples)
    how = {"steps": setting.most_steps}
    named = {
        "PGD": networks.named_attacks(setting, ["PGD"])["PGD"],
        "APGD-CE": attacks.APGD(setting.epsilon, **how),
        "APGD-T": attacks.APGD(setting.epsilon, loss="dlr_targeted", targets=setting.targets, **how),
        "FAB-T": attacks.FAB(setting.epsilon, targets=setting.targets, **how),
        "Square": attacks.Square(setting.epsilon, queries=setting.queries),
    }
    # Together, because the worst case over all of them is a row, too.
    how = {"objectives": networks.CAPSULES, "union": True, "early": False, "batch_size": setting.attack_batch}
    table = run.step("all", lambda: without_nan(evaluate.attack_table(model, named, examples, **how).rows))
    measured = {f"{each['attack']} on {each['objective']}": in_percent(each["robust_accuracy"]) for each in table}
    for kind in networks.CAPSULES:  # APGD-CE and APGD-T, FAB-T, Square: AutoAttack, here without leaving early
        measured[f"AutoAttack's best on {kind}"] = min(measured[f"{name} on {kind}"] for name in list(named)[1:])
    return {"measured": known(measured), "notes": _of(examples)}


@row("6.F2")
def histograms(setting, run):
    """How votes agree with capsules on clean images, and on those that PGD made of capsules and of votes."""
    model, (x, y) = networks.capsnet(setting, run), run.data(setting.dataset, "test", setting.examples)
    pgd = networks.named_attacks(setting, ["PGD"])["PGD"]
    images = {"clean": x} | {f"PGD on {name}": pgd(goal(model), x, y) for name, goal in networks.CAPSULES.items()}
    tap = taps.tap(model, ["votes", "capsules", "coupling"])
    statistics = {name: evaluate.vote_statistics(*tap(each), y) for name, each in images.items()}
    save(plot.vote_histograms(statistics), run.figure("votes"))
    names, shown = data.info(setting.dataset).class_names, slice(8)
    titles = {name: plot.titles_of(model.predict(each[shown], verbose=0), names) for name, each in images.items()}
    adversarial = {name: each[shown] for name, each in images.items() if name != "clean"}
    save(plot.adversarial(x[shown], adversarial, titles=titles), run.figure("images"))
    return {
        "measured": {f"{key}, {name}": value for name, of in statistics.items() for key, value in summary(of).items()}
    }


def summary(statistics, *, near=0.1):
    """Four numbers of Fig. 6.2, of what ``evaluate.vote_statistics`` returns.

    Args:
        statistics: dict of arrays, see there.
        near: float, cosine up to which a vote counts as invalid.

    Returns:
        dict: percentages of the true class's votes that are invalid (near zero) and negative; mean length and mean
        coupling of the positive votes for the longest other class.
    """
    true, rival = statistics["cosine"]
    positive = rival > near
    count = max(positive.sum(), 1)
    return {
        "invalid votes": in_percent((np.abs(true) <= near).mean()),
        "negative votes": in_percent((true < -near).mean()),
        "length for another class": float(statistics["length"][1][positive].sum() / count),
        "coupling to another class": float(statistics["coupling"][1][positive].sum() / count),
    }


def attacked(setting, run, name, model, examples, *, names=None, objectives=None, targets=None, warm=False):
    """Rows of ``evaluate.attack_table`` by "ATTACK on OBJECTIVE", each measured and stored on its own.

    Args:
        setting, run: see the engine.
        name: str, of the model.
        model: network of this chapter.
        examples: pair ``(x, y)``.
        names: list of str, attacks; None for those of the setting.
        objectives: dict; None for those of the network.
        targets: see ``evaluate.attack_table``.
        warm: bool, run every attack on a batch beforehand, so that seconds are of attacking, not of compiling.

    Returns:
        dict from str to dict.
    """
    rows = {}
    how = {"targets": targets, "early": False, "batch_size": setting.attack_batch}
    for kind, objective in (objectives or networks.objectives_of(model)).items():
        for title, attack in networks.named_attacks(setting, names).items():

            def measure(kind=kind, objective=objective, title=title, attack=attack):
                options = {"objectives": {kind: objective}, **how}
                if warm:
                    few = tuple(each[: setting.attack_batch] for each in examples)
                    evaluate.attack_table(model, {title: attack}, few, **options)
                return without_nan(evaluate.attack_table(model, {title: attack}, examples, **options).rows[0])

            rows[f"{title} on {kind}"] = run.step(f"{name}: {title} on {kind}", measure)
    return rows


def _of(examples):
    return f"Of the first {len(examples[0])} test images."


def _pair(setting, run):
    return {"ResNet": networks.convnet(setting, run), "CapsNet": networks.capsnet(setting, run)}
