"""The networks of chapter 6, which are trained once and shared by its rows, and the attacks on them."""

import dataclasses
import functools

from keras_capsvit import CapsNet, ConvNetCR, ConvNetR, attacks, training
from keras_capsvit.models import VGG19, ConvNetAvg, ConvNetFC, ResNet18

CAPSULES = {"capsules": attacks.capsules, "votes": attacks.votes}
LOGITS = {"logits": attacks.logits}
FOOLBOX = {"DeepFool": "deepfool_l2"}
PRESETS = {name: name.lower() for name in ("FGSM", "BIM", "MIM", "PGD")} | {"C&W": "carlini_wagner_l2"}


def recipe(setting, loss):
    """How the networks are trained: ConvNets learn faster, and may have fewer epochs to come to a like accuracy."""
    return training.Recipe(
        setting.convnet_epochs if loss == "cross_entropy" else setting.epochs,
        setting.batch_size,
        optimizer=setting.optimizer,
        learning_rate=setting.learning_rate,
        schedule=tuple(setting.schedule) if isinstance(setting.schedule, list) else setting.schedule,
        loss=loss,
        shift=setting.shift,
        flip=setting.flip,
    )


def convnet(setting, run, **options):
    """The ConvNet: ResNet18, or in a setting without a backbone ConvNetAvg."""

    def build(info):
        shape = info.image_shape, info.num_classes
        if setting.backbone:
            return ResNet18(*shape, filters=setting.filters)
        return ConvNetAvg(*shape, filters=setting.filters, kernel_size=setting.kernel_size)

    return trained("convnet", build, "cross_entropy", setting, run, **options)


def capsnet(setting, run, **options):
    """The CapsNet on the same backbone, or in a setting without one on the same convolutions."""

    def build(info):
        shape = info.image_shape, info.num_classes
        if setting.backbone:
            backbone = ResNet18(*shape, filters=setting.filters)
            how = {"backbone": backbone, "kernel_size": None, "batch_norm": True}
        else:
            how = {"filters": setting.filters, "kernel_size": setting.kernel_size}
        return CapsNet(*shape, num_types=setting.num_types, **how)

    return trained("capsnet", build, "log_lengths" if setting.backbone else "margin", setting, run, **options)


def vgg(setting, run):
    """VGG19 for small images."""

    def build(info):
        return VGG19(info.image_shape, info.num_classes, filters=setting.vgg_filters)

    return trained("vgg19", build, "cross_entropy", setting, run)


def plain_pair(setting, run):
    """CapsNet of Sabour et al. and the ConvNet that they compare it with (Table 6.10)."""

    def build_convnet(info):
        filters, units = (setting.filters, setting.filters, setting.filters // 2), tuple(setting.units)
        return ConvNetFC(
            info.image_shape, info.num_classes, filters=filters, units=units, kernel_size=setting.convnet_kernel_size
        )

    return {
        "ConvNet": trained("convnet_fc", build_convnet, "cross_entropy", setting, run),
        "CapsNet": capsnet(setting, run),
    }


def decoded(setting, run):
    """Networks of Table 6.4, which reconstruct their input."""

    def build(kind, **how):
        def network(info):
            how_large = {"filters": setting.filters, "kernel_size": setting.kernel_size}
            how_large["reconstruction_units"] = tuple(setting.decoder)
            return kind(info.image_shape, info.num_classes, **how_large, **how)

        return network

    networks = {
        "CNN+R": (build(ConvNetR), "cross_entropy"),
        "CNN+CR": (build(ConvNetCR), "cross_entropy"),
        "CapsNet": (build(CapsNet, num_types=setting.num_types, reconstruction="conditional"), "margin"),
    }
    return {name: trained(f"{name} with a decoder", *networks[name], setting, run) for name in setting.networks}


def trained(name, build, loss, setting, run, *, attack=None, objective=None):
    """A network of this chapter, from the cache if any row has trained it with these settings.

    With an ``attack`` it is trained on adversarial examples, made of what ``objective`` returns of the network, by
    default of its natural objective.
    """
    how = {"train": setting.train}
    if attack is not None:
        how["fit"] = functools.partial(training.adversarial_fit, attack=attack, objective=objective)
        how["method"] = f"on {attack} of {getattr(objective, '__name__', 'the natural objective')}"
        name = f"{name}, AT" if objective is None else f"{name}, AT + votes"
    return run.trained(name, build, setting.dataset, recipe(setting, loss), **how)


def objectives_of(model):
    """What is attacked of a network, by name."""
    return CAPSULES if isinstance(model, CapsNet) else LOGITS


def named_attacks(setting, names=None):
    """Attacks of Table 6.1 by name: the settings of the author's code, and Foolbox's of DeepFool; fewer steps in all.

    ``most_steps`` bounds the steps of the attacks that take some, and ``cw_steps`` those of every search of C&W. Steps
    of BIM, MIM and PGD are ``step_size`` long, .01 in the author's code.
    """
    table = {}
    for name in names or setting.attacks:
        if name in FOOLBOX:
            attack = attacks.preset(f"foolbox_{FOOLBOX[name]}", setting.epsilon_l2)
        else:
            epsilon = setting.epsilon_l2 if name == "C&W" else setting.epsilon
            attack = attacks.preset(f"vote_attack_{PRESETS[name]}", epsilon)
        how = {"steps": min(attack.steps, setting.cw_steps if name == "C&W" else setting.most_steps)}
        if name in ("BIM", "MIM", "PGD"):
            how["step_size"] = setting.step_size
        table[name] = dataclasses.replace(attack, **how)
    return table
