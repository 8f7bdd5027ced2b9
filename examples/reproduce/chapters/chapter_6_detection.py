"""Chapter 6: adversarial training, detection by reconstruction, and how large perturbations are."""

import numpy as np
from rows import row

from chapters import chapter_6_networks as networks
from chapters.figures import save
from chapters.plain import in_percent, known
from keras_capsvit import attacks, evaluate, plot, taps


def capsules_and_votes(model):
    """The sum of the two losses, of "AT + votes"."""
    return attacks.combined(attacks.capsules(model), attacks.votes(model))


@row("6.T2")
def adversarial_training(setting, run):
    """Networks trained on examples of PGD, attacked by PGD with more steps."""
    x, y = run.data(setting.dataset, "test", setting.examples)
    pgd = networks.named_attacks(setting, ["PGD"])["PGD"]
    attack = attacks.PGD(setting.epsilon, steps=setting.train_steps)
    trainings = {
        ("natural", "ResNet"): networks.convnet(setting, run),
        ("natural", "CapsNet"): networks.capsnet(setting, run),
        ("AT", "ResNet"): networks.convnet(setting, run, attack=attack),
        ("AT", "CapsNet"): networks.capsnet(setting, run, attack=attack),
        ("AT + votes", "CapsNet"): networks.capsnet(setting, run, attack=attack, objective=capsules_and_votes),
    }
    measured = {}
    for (training, name), model in trainings.items():
        measured[f"{training}, {name} clean"] = in_percent((taps.predictions(model, x) == y).mean())
        for kind, objective in networks.objectives_of(model).items():

            def measure(model=model, objective=objective):
                how = {"objective": objective, "batch_size": setting.attack_batch}
                return in_percent(evaluate.robust_accuracy(model, pgd, (x, y), **how))

            measured[f"{training}, {kind}"] = run.step(f"{training}, {kind}", measure)
    return {"measured": known(measured)}


@row("6.T4")
@row("6.T11")
def detection(setting, run):
    """Which adversarial images fool a network, and which do so without being flagged by their reconstruction."""
    x, y = run.data(setting.dataset, "test", setting.examples + setting.benign)
    examples = x[: setting.examples], y[: setting.examples]
    benign = x[setting.examples :], y[setting.examples :]
    measured, pictures = {}, {}
    for name, model in networks.decoded(setting, run).items():
        error = attacks.reconstruction_error(model)
        how = {"error": error, "threshold": evaluate.detection_threshold(error, benign)}
        for kind, named in _kinds(setting, error).items():
            for target, objective in networks.objectives_of(model).items():
                for title, attack in named.items():

                    def measure(model=model, attack=attack, objective=objective, how=how):
                        result = evaluate.detection(model, attack, examples, objective=objective, **how)
                        return {
                            "success": in_percent(result.success_rate),
                            "undetected": in_percent(result.undetected_rate),
                        }

                    whom = target if name == "CapsNet" else name
                    rates = run.step(f"{kind} {title} on {whom}", measure)
                    measured |= {f"{kind} {title} on {whom}, {rate}": value for rate, value in rates.items()}
                    if kind == "aware" and title == list(named)[-1]:
                        pictures[whom] = _shown(model, attack, objective, examples)
    rows = {}
    for whom, (images, drawn) in pictures.items():
        rows |= {whom: images, f"{whom}: decoded": drawn}
    save(plot.rows(rows), run.figure("detection"))
    return {"measured": known(measured)}


@row("6.T5")
def norms(setting, run):
    """Sizes of perturbations, of the images at which an attack succeeds on logits, capsules and votes alike."""
    x, y = run.data(setting.dataset, "test", setting.examples)
    models = {"ResNet": networks.convnet(setting, run), "CapsNet": networks.capsnet(setting, run)}
    measured = {}
    for title, attack in networks.named_attacks(setting).items():

        def measure(attack=attack):
            images, fooled = {}, np.ones(len(x), bool)
            for model in models.values():
                for kind, objective in networks.objectives_of(model).items():
                    images[kind] = _in_batches(attack, objective(model), x, y, setting.attack_batch)
                    right, wrong = taps.predictions(model, x) == y, taps.predictions(model, images[kind]) != y
                    fooled &= right & wrong
            sizes = {kind: evaluate.perturbation_norms(x, each) for kind, each in images.items()}
            means = {
                f"{norm} on {kind}": float(of[norm][fooled].mean()) if fooled.any() else None
                for kind, of in sizes.items()
                for norm in ("l0", "l1", "l2")
            }
            return {"means": means, "images": int(fooled.sum())}

        detected = run.step(title, measure)
        measured |= {f"{title} {key}": value for key, value in detected["means"].items()}
        measured[f"{title}, images"] = detected["images"]
    return {"measured": known(measured)}


def _in_batches(attack, goal, x, y, size):
    parts = [slice(start, start + size) for start in range(0, len(x), size)]
    return np.concatenate([attack(goal, x[part], y[part], numbers=np.arange(len(x))[part]) for part in parts])


def _kinds(setting, error):
    """Detection-agnostic and detection-aware attacks by name; the latter take two steps where the others take one."""
    agnostic = networks.named_attacks(setting)
    aware = {
        name: attacks.DetectionAware.of(attack, error=error, beta=setting.beta)
        for name, attack in agnostic.items()
        if name != "C&W"
    }
    return {"agnostic": agnostic, "aware": aware}


def _shown(model, attack, objective, examples):
    x, y = (each[:8] for each in examples)
    images = np.asarray(attack(objective(model), x, y))
    return images, np.asarray(model.reconstruct(images))
