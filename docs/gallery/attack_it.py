"""
Attack it
=========

How robust is a model? The small capsule network of ``saved_models``, as it would be served, is attacked and measured at
several radii.
"""

import pathlib

from keras_capsvit import attacks, data, evaluate, plot, serving

here = pathlib.Path.cwd()
clone = next(folder for folder in (here, *here.parents) if (folder / "saved_models").is_dir())
model = serving.load(clone / "saved_models" / "digits_gracapsnet")
x, y = data.take(data.load("digits", split="test"), 64)

# %%
# One attack
# ----------
# PGD moves every pixel by at most 0.1 of its range, along the gradient.

pgd = attacks.PGD(0.1, steps=10)
moved = pgd(model, x, y)
classes = [str(digit) for digit in range(10)]
titles = {
    "clean": plot.titles_of(model.predict(x[:6]), classes),
    "PGD": plot.titles_of(model.predict(moved[:6]), classes),
}
plot.adversarial(x[:6], {"PGD": moved[:6]}, titles=titles)

# %%
# Accuracy, clean and attacked, with the size of the changes:

result = evaluate.robustness(model, pgd, (x, y))
print(f"{result.accuracy:.1%} clean, {result.robust_accuracy:.1%} attacked, mean L2 {result.norms['l2']:.2f}")

# %%
# Several attacks and radii
# -------------------------
# Each attack gets each radius in turn; "any of these" is the worst case of each image over all of them.

table = evaluate.attack_table(
    model,
    {"FGSM": attacks.FGSM(0.1), "PGD": pgd, "Square": attacks.Square(0.1, queries=200)},
    (x, y),
    epsilons=[0.02, 0.05, 0.1, 0.15],
    union=True,
)
plot.robustness_curve(table)

# %%
# How far is the border?
# ----------------------
# FAB looks for the nearest image that the model takes for something else.

nearest = attacks.FAB(norm="l2", steps=20)(model, x[:6], y[:6])
distances = evaluate.perturbation_norms(x[:6], nearest)["l2"]
plot.adversarial(x[:6], {"FAB": nearest}, titles={"FAB": [f"{distance:.2f} away" for distance in distances]})
