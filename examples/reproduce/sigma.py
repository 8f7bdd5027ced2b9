"""Which adjacency? GraCapsNet with several sigma, with and without degree normalisation, at equal budget.

    python examples/reproduce/sigma.py --seeds 0 1

Sigma 0 is the identity, nodes without neighbours. Writes results/sigma.json.
"""

from short_training import compare, parse

from keras_capsvit import GraCapsNet

ADJACENCIES = [{"sigma": 0, "normalize": False}] + [
    {"sigma": sigma, "normalize": normalize} for sigma in (0.5, 1, 2, 4) for normalize in (False, True)
]

if __name__ == "__main__":
    compare(
        parse(__doc__, dataset="fashion_mnist", out="sigma.json"),
        ADJACENCIES,
        lambda adjacency, about: GraCapsNet(about.image_shape, about.num_classes, **adjacency),
    )
