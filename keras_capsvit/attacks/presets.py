"""Attacks with the settings that Foolbox 3.3 and ART 1.20 have by default, and those of the thesis, by name."""

from keras_capsvit import checks
from keras_capsvit.attacks.base import Attack
from keras_capsvit.attacks.carlini_wagner import CarliniWagner, CarliniWagnerLinf
from keras_capsvit.attacks.deepfool import DeepFool
from keras_capsvit.attacks.pgd import BIM, FGSM, MIM, PGD

# All return where the last step leads to. Steps of Foolbox are shares of epsilon, those of ART are not. Foolbox's MIM
# sums up the signs of gradients, ours the gradients (Dong et al. 2018). Those of the Vote-Attack are what the thesis's
# own code has for chapter 6: steps of .01 in pixels of [0, 1] whatever epsilon, which is .031 there. With a confidence
# of .5 examples of Carlini and Wagner do not stop at the border of the objective, which is not that of the judge.
_PRESETS = {
    "foolbox_fgsm": lambda epsilon: FGSM(epsilon),
    "foolbox_bim": lambda epsilon: BIM(epsilon, relative_step=0.2, steps=10, keep="last"),
    "foolbox_mim": lambda epsilon: MIM(epsilon, relative_step=0.2, steps=10, keep="last"),
    "foolbox_pgd": lambda epsilon: PGD(epsilon, relative_step=0.01 / 0.3, steps=40, keep="last"),
    "foolbox_fgsm_l2": lambda epsilon: FGSM(epsilon, norm="l2"),
    "foolbox_bim_l2": lambda epsilon: BIM(epsilon, relative_step=0.2, steps=10, norm="l2", keep="last"),
    "foolbox_pgd_l2": lambda epsilon: PGD(epsilon, relative_step=0.025, steps=50, norm="l2", keep="last"),
    "foolbox_deepfool_l2": lambda epsilon: DeepFool(epsilon),
    "foolbox_deepfool_linf": lambda epsilon: DeepFool(epsilon, norm="linf"),
    "foolbox_carlini_wagner_l2": lambda epsilon: CarliniWagner(epsilon),
    "vote_attack_fgsm": lambda epsilon: FGSM(epsilon),
    "vote_attack_bim": lambda epsilon: BIM(epsilon, step_size=0.01, steps=10, keep="last"),
    "vote_attack_mim": lambda epsilon: MIM(epsilon, step_size=0.01, steps=10, keep="last"),
    "vote_attack_pgd": lambda epsilon: PGD(epsilon, step_size=0.01, steps=40, keep="last"),
    "vote_attack_carlini_wagner_l2": lambda epsilon: CarliniWagner(epsilon, confidence=0.5),
    "art_fgsm": lambda epsilon: FGSM(epsilon),
    "art_bim": lambda epsilon: BIM(epsilon, step_size=0.1, steps=100, keep="last"),
    "art_mim": lambda epsilon: MIM(epsilon, step_size=0.1, steps=100, keep="last"),
    "art_pgd": lambda epsilon: PGD(epsilon, step_size=0.1, steps=100, random_start=False, keep="last"),
    "art_deepfool_l2": lambda epsilon: DeepFool(epsilon, steps=100, overshoot=1e-6),
    "art_carlini_wagner_l2": lambda epsilon: CarliniWagner(
        epsilon, steps=10, binary_search_steps=10, initial_const=0.01
    ),
    "art_carlini_wagner_linf": lambda epsilon: CarliniWagnerLinf(epsilon, steps=10),
}

PRESETS = tuple(_PRESETS)


def preset(name, epsilon=None) -> Attack:
    """An attack with another library's default settings.

    Args:
        name: str, one of ``PRESETS``: the library, the attack, and for those that come in several, the norm.
        epsilon: float, the radius; DeepFool and Carlini and Wagner's attacks take None, for no limit.

    Returns:
        Attack, whose settings ``dataclasses.replace`` changes.

    Raises:
        ValueError: for an unknown name, or no radius where there has to be one.
    """
    checks.choice("name", name, PRESETS)
    if epsilon is None and not any(kind in name for kind in ("deepfool", "carlini")):
        raise ValueError(f"{name} needs a radius: preset({name!r}, epsilon).")
    return _PRESETS[name](epsilon)
