"""Explanations of a dozen images, chosen by rule, as pictures side by side."""

import numpy as np

from keras_capsvit import explain, taps
from keras_capsvit.report.drawing import over, tile
from keras_capsvit.report.explainers import BASELINE, maps_of
from keras_capsvit.report.sections import Section, percent
from keras_capsvit.report.selection import RULES, by_rule


def side_by_side(subject, results):
    """All explainers that fit the model, of the predicted classes."""
    shown = by_rule(subject.predictions, subject.effort.explained)
    numbers = [number for number, _ in shown]
    section = Section(how="explain.GradCAM(model)(x, predicted)  # and the like", numbers=numbers)
    x, _ = subject.read(numbers)
    target = subject.predictions.predicted[numbers]
    fits, reasons = subject.explainers
    section.left_out += [f"{name}: {reason}" for name, reason in reasons.items()]
    explainers = {name: explainer for name, explainer in fits.items() if name != BASELINE}
    maps = {name: maps_of(each, x, target, subject.batch_size) for name, each in explainers.items()}
    pictures, rows = subject.pictures(x), []
    for k, (number, rule) in enumerate(shown):
        title, alt = _titles(subject, number, rule)
        tiles = [(tile(pictures[k]), "", alt)]
        for name, of_name in maps.items():
            explained = subject.names[target[k]]
            tiles.append((tile(over(pictures[k], of_name[k])), "", f"{name} of {explained} on image {number}"))
        rows.append((title, tiles))
    counts = {rule: sum(each == rule for _, each in shown) for rule in RULES}
    section.say(
        f"{len(shown)} images by rule: {'; '.join(f'{counts[rule]} {rule} ({text})' for rule, text in RULES.items())}. "
        "Red speaks for the predicted class, blue against it; every map is scaled by itself."
    )
    section.figure("explainers", "Explainers that fit", len(explainers), "count")
    section.grid("maps", "Every row is an image, every column an explainer of the predicted class.", ["", *maps], rows)
    return section


def two_classes(subject, results):
    """What speaks for the predicted class and not for others, and the same of the second class."""
    shown = by_rule(subject.predictions, subject.effort.explained)
    numbers = [number for number, rule in shown if rule != "right"] or [number for number, _ in shown]
    fits, reasons = subject.explainers
    name = next((each for each in ("CLRP", "GradCAM", "TransformerAttribution", "Saliency") if each in fits), None)
    section = Section(how=f"explain.{name}(model)(x, predicted); explain.{name}(model)(x, second)", numbers=numbers)
    if name != "CLRP":
        section.left_out.append(f"CLRP, which contrasts classes: {reasons.get('CLRP', 'does not fit')}")
    if name is None:
        return section
    x, _ = subject.read(numbers)
    predictions, pictures, rows = subject.predictions, subject.pictures(x), []
    predicted, second = predictions.predicted[numbers], predictions.second[numbers]
    of_predicted, of_second = (maps_of(fits[name], x, ids, subject.batch_size) for ids in (predicted, second))
    for k, number in enumerate(numbers):
        names = [subject.names[ids[k]] for ids in (predicted, second)]
        certain = float(predictions.confidence[number])
        certainties = (certain, certain - float(predictions.margin[number]))
        tiles = [(tile(pictures[k]), f"is {subject.names[predictions.label[number]]}", f"Image {number}")]
        for of, which, share in zip((of_predicted, of_second), names, certainties, strict=True):
            tiles.append(
                (tile(over(pictures[k], of[k])), f"{which}, {percent(share)}", f"{name} of {which} on image {number}")
            )
        rows.append((f"Image {number}", tiles))
    section.say(
        f"{name} of the predicted class beside that of the class with the second highest score, with confidences."
    )
    columns = ["image", "predicted class", "second class"]
    section.grid("classes", "What speaks for the predicted class, and what for the second one.", columns, rows)
    return section


def built_in(subject, results):
    """What models explain by themselves: contributions of capsules, attention of transformers."""
    fits, _ = subject.explainers
    numbers = [number for number, _ in by_rule(subject.predictions, subject.effort.explained)]
    if "GraphContribution" in fits:
        return _contributions(subject, fits["GraphContribution"], numbers)
    if "AttentionRollout" in fits:
        return _attention(subject, fits["AttentionRollout"], numbers)
    reason = "the model is no capsule network and has no attention over all tokens."
    return Section(left_out=[f"Built-in explanations: {reason}"])


def _contributions(subject, explainer, numbers):
    """What nodes contribute to the class capsules of the highest scores."""
    how = "explain.GraphContribution(model)(x, target)  # of the classes with the three highest scores"
    section = Section(how=how, numbers=numbers)
    section.say(
        "What the nodes of the grid contribute to the length of the class capsules with the three highest scores, red "
        "for and blue against; a map adds up to the length of its capsule before the squash."
    )
    x, _ = subject.read(numbers)
    pictures, lengths, rows = subject.pictures(x), subject.judge(x), []
    order = np.argsort(-lengths, axis=1, kind="stable")[:, :3]
    maps = [maps_of(explainer, x, ids, subject.batch_size) for ids in order.T]
    for k, number in enumerate(numbers):
        tiles = [(tile(pictures[k]), f"is {subject.names[subject.predictions.label[number]]}", f"Image {number}")]
        for ids, of in zip(order[k], maps, strict=True):
            which = subject.names[ids]
            alt = f"Contributions to {which} on image {number}"
            tiles.append((tile(over(pictures[k], of[k])), f"{which}: {lengths[k, ids]:.2f}", alt))
        rows.append((f"Image {number}", tiles))
    columns = ["image", *("first class", "second", "third")[: order.shape[1]]]
    section.grid("contributions", "Contributions to the lengths of class capsules.", columns, rows)
    return section


def _attention(subject, explainer, numbers):
    """What the tokens that the class is read from attend to."""
    how = (
        "taps.tokens_read(scores, x); scores.intermediates(x, attention=True); explain.AttentionRollout(model)(x)"
        "  # scores = taps.scores(model)"
    )
    section = Section(how=how, numbers=numbers)
    section.say(
        "What the tokens that the class is read from attend to in single blocks, mean over heads, and the rollout "
        "through all blocks. Attention is the same for all classes."
    )
    x, _ = subject.read(numbers)
    predicted, pictures, rows = subject.predictions.predicted[numbers], subject.pictures(x), []
    blocks, of_blocks = _class_attention(subject, x)
    rollout = maps_of(explainer, x, predicted, subject.batch_size)
    for k, number in enumerate(numbers):
        tiles = [(tile(pictures[k]), "", f"Image {number}")]
        for block, of in zip(blocks, of_blocks, strict=True):
            tiles.append((tile(over(pictures[k], of[k])), "", f"Attention of block {block} on image {number}"))
        tiles.append((tile(over(pictures[k], rollout[k])), "", f"Attention rollout on image {number}"))
        rows.append((f"Image {number}: {subject.names[predicted[k]]}", tiles))
    columns = ["image", *(f"block {block}" for block in blocks), "rollout"]
    section.grid("attention", "Attention of the tokens that the class is read from.", columns, rows)
    return section


def _class_attention(subject, x):
    """Some blocks, and maps ``(n, H, W)`` of each: attention of the tokens that the class is read from."""
    prefix, grid = taps.tokens(subject.scores, x)
    read = taps.tokens_read(subject.scores, x)
    _, attentions = subject.scores.intermediates(x, attention=True)
    blocks = np.unique(np.linspace(0, len(attentions) - 1, min(6, len(attentions))).astype("int64"))
    maps = []
    for block in blocks:
        weights = np.asarray(attentions[block]).mean(axis=1)[:, read].mean(axis=1)[:, prefix:]
        maps.append(np.asarray(explain.base.enlarged(weights.reshape(-1, *grid), x.shape[1:3])))
    return (blocks + 1).tolist(), maps


def _titles(subject, number, rule):
    """Title of an image, and its alternative text."""
    predictions = subject.predictions
    label, guess = (subject.names[ids[number]] for ids in (predictions.label, predictions.predicted))
    verdict = f"{guess}, right" if predictions.correct[number] else f"{guess}, wrong: is {label}"
    title = f"{verdict} ({percent(float(predictions.confidence[number]))})"
    return (
        f"{title}; {rule}" if rule == "uncertain" else title,
        f"Image {number} of class {label}, predicted as {guess}",
    )
