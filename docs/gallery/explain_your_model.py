"""
Explain your model
==================

A ConvNet of plain Keras, as you may have one: why does it take a digit for what it does? Four explainers, and
noise, look at it as it is, softmax included, and a measurement says which of them to believe.
"""

import keras

from keras_capsvit import data, evaluate, explain, plot, taps

keras.utils.set_random_seed(0)
train, test = data.load("digits", batch_size=32)
model = keras.Sequential(
    [
        keras.Input((28, 28, 1)),
        keras.layers.Conv2D(16, 5, strides=2, activation="relu", name="conv1"),
        keras.layers.Conv2D(32, 3, activation="relu", name="conv2"),
        keras.layers.Flatten(),
        keras.layers.Dense(10, activation="softmax"),
    ]
)
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
history = model.fit(train, validation_data=test, epochs=5, shuffle=False, verbose=0)  # the stream shuffles itself
print(f"Accuracy on the test digits: {history.history['val_accuracy'][-1]:.1%}")

# %%
# Maps
# ----
# An explainer is made of a model, and called with images. Each returns maps as large as the images, of the predicted
# classes.

x, y = data.take(test, 64)
explainers = {
    "gradient": explain.Saliency(model),
    "integrated gradients": explain.IntegratedGradients(model, steps=20),
    "Grad-CAM": explain.GradCAM(model),
    "CLRP": explain.CLRP(model),
    "random": explain.RandomMap(),
}
maps = {name: explainer(x[:5]) for name, explainer in explainers.items()}
plot.comparison(x[:5], maps)

# %%
# Another class
# -------------
# What in these digits speaks for an eight? ``CLRP`` shows what speaks for one class and not for the others.

plot.grid(x[:5], explain.CLRP(model)(x[:5], target=8), titles=[f"a {digit}, as an 8" for digit in y[:5]])

# %%
# Which one to believe
# --------------------
# Replace the pixels that a map calls relevant, the most relevant first: the sooner the probability of the class drops,
# the better the map. Every explanation should beat the random one.

metrics = {"deletion": lambda model, x, y, maps: evaluate.deletion(model, x, maps, target=y, steps=14).area}
print(evaluate.compare(model, explainers, (x, y), metrics))

# %%
# Inside
# ------
# Every layer is a tap, a function of images with a name:

print(taps.layers(model))
print(taps.tap(model, "conv2")(x).shape)
