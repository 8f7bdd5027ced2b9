"""
Look into a capsule network
===========================

A capsule network says where it saw what, and draws what it believes it saw. This one is trained for a few seconds on
digits of 16x16 pixels.
"""

import keras

from keras_capsvit import CapsuleMask, GraCapsNet, MarginLoss, data, evaluate, explain, plot, taps

keras.utils.set_random_seed(0)
train, test = data.load("digits", batch_size=32, image_size=16)
model = GraCapsNet(
    (16, 16, 1),
    10,
    num_heads=8,
    filters=64,
    reconstruction="conditional",
    reconstruction_weight=0.01,
    reconstruction_units=(128, 256),
)
model.compile(keras.optimizers.Adam(0.005), MarginLoss(), metrics=["accuracy"])
model.fit(train, epochs=8, shuffle=False, verbose=0)  # the stream shuffles itself
accuracy = model.evaluate(test, verbose=0, return_dict=True)["accuracy"]
print(f"{model.count_params():,} parameters, {accuracy:.1%} of the test digits")

# %%
# Where it saw what
# -----------------
# Each node of the grid adds something to the class capsule. These contributions are the explanation that the network
# has built in, and they add up to the length of the class capsule before it is squashed.

x, y = data.take(test, 12)
lengths = model.predict(x, verbose=0)
maps = explain.GraphContribution(model)(x)
plot.grid(x, maps, titles=plot.titles_of(lengths, list("0123456789")), label="contribution")

# %%
# The points on the way have names and shapes: parts on a grid, how much each counts for each class, class capsules, and
# their lengths.

for name in taps.names(model):
    if name != "reconstruction":
        print(f"{name:18s} {taps.tap(model, name)(x).shape}")

# %%
# What it believes it saw
# -----------------------
# The decoder draws an image from the longest class capsule.

drawn = keras.ops.convert_to_numpy(model.reconstruct(x))
plot.rows({"image": x[:8], "drawn": drawn[:8]})

# %%
# What one dimension means
# ------------------------
# Turn one number of a class capsule up and down, and see what the decoder draws: thickness, slant, width.

capsule = CapsuleMask()(taps.tap(model, "capsules")(x[:1]), y[:1])[0]
plot.sweep(evaluate.sweep(model.decoder, capsule)[:6], evaluate.OFFSETS)
