"""Tables of robustness: several attacks, objectives and radii, and models that each other's examples are tried on."""

import dataclasses
import functools

import numpy as np

from keras_capsvit import checks, taps
from keras_capsvit.evaluate.attacking import NORMS, attacked, measured_images
from keras_capsvit.evaluate.judge import Judge
from keras_capsvit.evaluate.progress import Progress, place
from keras_capsvit.evaluate.robustness import summary
from keras_capsvit.evaluate.table import Table

ANY = "any of these"


def attack_table(
    model,
    attacks,
    dataset,
    *,
    objectives=None,
    targets=None,
    epsilons=None,
    union=False,
    early=True,
    norms="own",
    batch_size=128,
    work=None,
) -> Table:
    """Robustness of a model to several attacks, on several objectives.

    Args:
        model: see ``robustness``.
        attacks: dict from names to attacks.
        dataset: see ``robustness``; read once for each row, and has to be the same every time.
        objectives: dict from names to callables from the model to what is attacked; None for the natural one alone.
        targets: see ``robustness``.
        epsilons: sequence of floats, radii that every attack gets in turn in place of its own; None for its own. One
            trace serves them all, and ``plot.robustness_curve`` draws them.
        union: bool, whether the worst case is a row, too (of every radius): of an image that any attack on any
            objective fools. Its norms are those of the smallest perturbations, its seconds those of all together.
        early: see ``robustness``. The thesis's tables judge the last step, and time all steps: ``early=False``, of
            attacks with ``keep="last"``.
        norms: ``"own"``, of the perturbations that succeeded; or ``"common"``, of the images at which all rows
            succeeded, so that an attack does not look small because it only gets at the easy ones.
        batch_size: see ``robustness``.
        work: see ``robustness``; a folder in it for each row.

    Returns:
        Table, a row for each radius, objective and attack: ``epsilon`` (with ``epsilons``), ``objective``, ``attack``,
        ``judged`` (``"any look"`` or ``"end"``), and the figures of Robustness. The row of all is of the attack
        ``"any of these"``, and of the objective ``"any"`` where there are several.

    Raises:
        ValueError: as ``robustness``; for no attack or radius, attacks without a radius where there are some, and a
            data set that can be read once only, or is shuffled anew each time.

    Example::

        table = evaluate.attack_table(model, {"PGD": pgd}, test, epsilons=[2 / 255, 4 / 255, 8 / 255])
        plot.robustness_curve(table).savefig("robustness.png")
    """
    attacks = checks.named("attacks", attacks, "attacks")
    checks.choice("norms", norms, ("own", "common"))
    checks.booleans(union=union, early=early)
    if not attacks:
        raise ValueError("Expected at least one attack; received none.")
    if objectives is not None:
        objectives = checks.named("objectives", objectives, "callables from the model to what is attacked")
    objectives = objectives or {"natural": None}
    settings, measured = {"targets": targets, "early": early, "batch_size": batch_size}, {}
    dataset = checks.Repeatable(dataset, batch_size)
    for epsilon in _radii(epsilons):
        for kind, objective in objectives.items():
            for name, attack in attacks.items():
                resized = attack if epsilon is None else _of_radius(name, attack, epsilon)
                folder = place(work, *(() if epsilon is None else (epsilon,)), kind, name)
                measured[epsilon, kind, name] = measured_images(
                    model, resized, dataset, objective=objective, work=folder, **settings
                )
    rows = []
    for epsilon in dict.fromkeys(epsilon for epsilon, _, _ in measured):
        parts = {(kind, name): each for (radius, kind, name), each in measured.items() if radius == epsilon}
        common = np.all([each["fooled"] for each in parts.values()], axis=0)
        if union:
            parts["any" if len(objectives) > 1 else next(iter(objectives)), ANY] = _worst(list(parts.values()))
        for (kind, name), each in parts.items():
            row = {} if epsilon is None else {"epsilon": epsilon}
            looks = early and any(hasattr(attacks[of], "advance") for of in (attacks if name == ANY else (name,)))
            row |= {"objective": kind, "attack": name, "judged": "any look" if looks else "end"}
            figures = dataclasses.asdict(summary(each, common if norms == "common" else each["fooled"]))
            sizes = figures.pop("norms")
            rows.append({**row, **figures, **sizes})
    return Table(rows)


def transfer_matrix(models, attack, dataset, *, sources=None, batch_size=128, work=None) -> Table:
    """How far adversarial examples made on one model fool others (thesis Table 6.8).

    Args:
        models: dict from names to models, or callables ``x → scores (b, M)``, the targets.
        attack: callable ``(objective, x, y, targeted) → adversarial images``.
        dataset: see ``robustness``.
        sources: dict from names to what is attacked: models, or Objectives such as ``attacks.votes(model)``; None for
            the models themselves.
        batch_size: see ``robustness``.
        work: see ``robustness``.

    Returns:
        Table, a row for each target: ``target``, and for each source the share of the examples that the target
        classifies correctly and that, made on the source, fool it (NaN if it classifies none correctly).
    """
    models = checks.named("models", models, "models")
    sources = models if sources is None else checks.named("sources", sources, "models or Objectives")
    taps.check_attack(attack)
    judges, count = {name: Judge(model) for name, model in models.items()}, 0

    def measure(x, y, numbers):
        images = {name: attacked(attack, source, x, y, False, numbers) for name, source in sources.items()}
        right = {f"right {target}": judge.correct(x, y) for target, judge in judges.items()}
        wrong = {
            f"wrong {target}\n{source}": judge.classes(adversarial) != y
            for target, judge in judges.items()
            for source, adversarial in images.items()
        }
        return right | wrong

    settings = {"models": models, "attack": attack, "sources": sources}
    total = checks.batches_in(dataset, batch_size)
    with Progress(work, "transfer_matrix", settings, judges=judges.values(), total=total) as progress:
        for x, y in checks.batches_of(dataset, batch_size):
            progress.batch(functools.partial(measure, x, y, count + np.arange(len(x))), x, y)
            count += len(x)
    if not count:
        raise ValueError("Expected at least one example; the data set is empty.")
    measured = progress.results()

    def share(target, source):
        right = measured[f"right {target}"]
        return float(measured[f"wrong {target}\n{source}"][right].mean()) if right.any() else float("nan")

    return Table([{"target": target, **{source: share(target, source) for source in sources}} for target in models])


def _radii(epsilons):
    """Floats >= 0, or None alone."""
    if epsilons is None:
        return [None]
    radii = checks.numbers(epsilons, "epsilons")
    if radii.ndim != 1 or not len(radii):
        raise ValueError(f"Expected epsilons, a sequence of at least one radius; received {epsilons!r:.100}.")
    return list(dict.fromkeys(checks.number("epsilons", float(radius), 0) for radius in radii))


def _of_radius(name, attack, epsilon):
    """The attack with another radius."""
    if not dataclasses.is_dataclass(attack) or "epsilon" not in (field.name for field in dataclasses.fields(attack)):
        raise ValueError(f"Expected attacks that have an epsilon, of several epsilons; {name!r} has none.")
    return dataclasses.replace(attack, epsilon=epsilon)


def _worst(parts):
    """What was measured of the images under all attacks together."""
    fooled = np.array([each["fooled"] for each in parts])
    worst = {**parts[0], "fooled": fooled.any(axis=0), "seconds": np.sum([each["seconds"] for each in parts], axis=0)}
    for norm in NORMS:
        sizes = np.where(fooled, [each[norm] for each in parts], np.inf).min(axis=0)
        worst[norm] = np.where(worst["fooled"], sizes, 0.0)
    return worst
