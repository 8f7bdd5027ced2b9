"""A vision transformer and a ResNet under naturally corrupted and adversarial patches, side by side (thesis chapter 7).

    python examples/patch_robustness.py                                  # trains both on CIFAR-10 first, some hours
    python examples/patch_robustness.py --models vit.keras resnet.keras --parts natural adversarial
    python examples/patch_robustness.py --dataset digits --epochs 10 --steps 200       # no download, some minutes

Interrupted, training goes on after the last finished epoch, and attacks after the last batch, which is in OUT/work;
what is finished is not attacked again. Each part of the comparison writes OUT/PART.csv and .json: natural (Table 7.2
left), adversarial (right; also patches anywhere, larger ones, and within 8/255), targeted (7.7), positions (Fig. 7.6),
shift (Table 7.4), transfer (7.7, 7.8), attention (shares of rollout or feature map, and of gradients as in Table 7.3,
on the patch; OUT/attention.png is Fig. 7.4 and 7.5). Corruptions need
``pip install -e ".[corruptions]"``.
"""

import patch_models  # first, because it sets up TensorFlow

# isort: split
import dataclasses
import functools
import time

import numpy as np
from matplotlib.patches import Rectangle

from keras_capsvit import attacks, evaluate, explain, plot, taps
from keras_capsvit.data.corruptions import CORRUPTIONS, corrupt_patches
from keras_capsvit.evaluate.progress import Progress, place
from keras_capsvit.patches import PatchGrid, boxes

BATCH = 64  # images attacked between two looks at what is kept
SHOWN = 6  # images in the figure, those first that fool all models


@dataclasses.dataclass
class Setting:
    """Models by name, images ``x`` of classes ``y`` that all classify correctly, a grid, and an attack on one patch."""

    args: object
    models: dict
    x: np.ndarray
    y: np.ndarray

    def __post_init__(self):
        self.grid = PatchGrid(self.x.shape[1:], self.args.patch_size)
        how = {"steps": self.args.steps, "seed": self.args.seed}
        self.attack = attacks.PatchAttack(self.args.patch_size, positions=self.grid, **how)
        self._results = {}

    def on_grid_of(self, size):
        """The attack on one patch of another size, on a grid of its own."""
        grid = PatchGrid(self.x.shape[1:], size)
        return dataclasses.replace(self.attack, patch_size=size, positions=grid)

    def results(self, attack=None):
        """What an attack, the one on a patch by default, finds on each model."""
        attack = attack or self.attack
        if attack not in self._results:
            self._results[attack] = {name: self.run(attack, name, self.y) for name in self.models}
        return self._results[attack]

    def run(self, attack, name, y, targeted=False):
        """What an attack finds on a model, a PatchResult; interrupted, it goes on after the last batch of images."""
        settings = {"model": self.models[name], "attack": attack, "targeted": targeted}
        kind = f"patches of {attack.patch_size[0]}{', targeted' if targeted else ''}"
        starts = range(0, len(y), BATCH)
        with Progress(self.work(name, kind), "patches", settings, total=len(starts)) as progress:
            for start in starts:
                numbers = np.arange(start, min(start + BATCH, len(y)))
                x, ids = self.x[numbers], y[numbers]
                attacked = functools.partial(attack.run, self.models[name], x, ids, targeted, numbers=numbers)
                progress.batch(lambda attacked=attacked: vars(attacked()), x, ids)
        return attacks.PatchResult(**progress.results())

    def work(self, *names):
        """Folder in which what was measured is kept."""
        return place(self.args.out, "work", *names)


def natural(setting):
    """Fooling rates for shares of corrupted patches, of the strongest corruptions."""
    rows = []
    for share in setting.args.shares:
        count = max(1, round(share * len(setting.grid)))
        indices = setting.grid.draw(len(setting.x), count, seed=setting.args.seed)
        for name in setting.args.corruptions:
            images = corrupt_patches(setting.x, setting.grid, indices, name, seed=setting.args.seed)
            rates = evaluate.fooling_rate(setting.models, lambda *_, images=images: images, (setting.x, setting.y))
            kept = ("model", "examples", "fooling_rate")
            rows += [{"patches": count, "corruption": name} | {key: row[key] for key in kept} for row in rates.rows]
    return evaluate.Table(rows)


def mean_over_corruptions(table):
    """Fooling rate of each model for each number of patches."""
    rows = []
    for count in dict.fromkeys(table["patches"]):
        with_count = [row for row in table.rows if row["patches"] == count]
        means = {
            name: float(np.mean([row["fooling_rate"] for row in with_count if row["model"] == name]))
            for name in dict.fromkeys(row["model"] for row in with_count)
        }
        rows.append({"patches": count, **means})
    return evaluate.Table(rows)


def adversarial(setting):
    """Fooling rates and iterations of adversarial patches."""
    attack, size = setting.attack, setting.args.patch_size
    kinds = {f"{n} aligned": dataclasses.replace(attack, num_patches=n) for n in range(1, setting.args.num_patches + 1)}
    kinds["1 anywhere"] = dataclasses.replace(attack, positions=None)
    kinds["1 within 8/255"] = dataclasses.replace(attack, epsilon=8 / 255)
    larger = 2 * size
    while larger <= min(setting.grid.image_shape) // 2:
        kinds[f"1 of {larger}x{larger}"] = setting.on_grid_of(larger)
        larger *= 2
    rows = []
    for name, perturb in kinds.items():
        work = setting.work("adversarial", name)
        rates = evaluate.fooling_rate(setting.models, perturb, (setting.x, setting.y), work=work)
        rows += [{"patches": name, **row} for row in rates.rows]
    return evaluate.Table(rows)


def targeted(setting):
    """How often an adversarial patch gives a class that was drawn for the image, and not its own, and when."""
    classes = next(iter(setting.models.values())).output_shape[-1]
    others = np.random.default_rng(setting.args.seed).integers(1, classes, len(setting.y))
    targets = (setting.y + others) % classes
    rows = []
    for name in setting.models:
        result = setting.run(setting.attack, name, targets, targeted=True)
        iterations = {"mean_iterations": mean(result.iterations[result.fooled])}
        rows.append({"model": name, "examples": len(targets), "success_rate": mean(result.fooled), **iterations})
    return evaluate.Table(rows)


def positions(setting):
    """Fooling rate at every position, on some of the images."""
    few = slice(setting.args.map_examples)
    rows = []
    for name, model in setting.models.items():
        examples, work = (setting.x[few], setting.y[few]), setting.work("positions", name)
        rates = evaluate.position_map(model, setting.attack, examples, setting.grid, work=work)
        rows += [
            {"model": name, "row": i, "column": j, "examples": len(setting.x[few]), "fooling_rate": float(rate)}
            for (i, j), rate in np.ndenumerate(rates)
        ]
    return evaluate.Table(rows)


def shift(setting):
    """Fooling rates of patches that were moved after the attack, by pixels and by whole patches."""
    size = setting.args.patch_size
    shifts = [(0, 0), (0, 1), (1, 0), (1, 1), (0, size), (size, 0), (size, size)]
    rows = []
    for name, result in setting.results().items():
        table = evaluate.shift_table(setting.models[name], setting.x, setting.y, result, shifts)
        rows += [{"model": name, **row} for row in table.rows]
    return evaluate.Table(rows)


def transfer(setting):
    """Fooling rates of patches on other models and other images."""
    return evaluate.patch_transfer(setting.models, setting.x, setting.y, setting.results())


def attention(setting):
    """Shares of attention and gradients that lie on the patch, before and after; and the figure."""
    rows, pictures, size = [], {}, setting.args.patch_size
    for attack in (setting.attack, setting.on_grid_of(2 * size)):
        indices = attack.positions.draw(len(setting.x), seed=setting.args.seed)  # those that the attack draws, too
        corrupted = corrupt_patches(setting.x, attack.positions, indices, "gaussian_noise", seed=setting.args.seed)
        results = setting.results(attack)
        shown = np.argsort(~np.all([part.fooled for part in results.values()], axis=0), kind="stable")[:SHOWN]
        for name, result in results.items():
            where = boxes(result.positions, attack.patch_size)
            for kind, images in {"clean": setting.x, "corrupted": corrupted, "attacked": result.images}.items():
                by_kind = maps_of(setting.models[name], images, setting.y)
                for what, maps in by_kind.items():
                    shares = evaluate.patch_share(maps, where)
                    for which, mask in {"fooled": result.fooled, "all": np.ones_like(result.fooled)}.items():
                        means = {kind_of: mean(values[mask]) for kind_of, values in shares.items()}
                        row = {"patch_size": attack.patch_size[0], "model": name, "images": kind, "map": what}
                        rows.append({**row, "attack": which, "examples": int(mask.sum()), **means})
                if attack is setting.attack:
                    pictures[f"{name}, {kind}"] = images[shown], by_kind["attention"][shown], where[shown, 0]
    draw(pictures, setting.args.out / "attention.png")
    return evaluate.Table(rows)


def maps_of(model, images, y):
    """Rollout where there is attention and the mean feature map otherwise; gradients of two classes (7.5.1)."""
    gradient = explain.Saliency(model, channels=True)
    maps = {"attention": explainer_of(model)(images)}
    for name, target in {"true class": y, "predicted class": None}.items():
        maps[f"gradient of the {name}"] = np.abs(gradient(images, target)).sum(axis=-1)
    return maps


def explainer_of(model):
    """Rollout where there is attention, the mean feature map otherwise."""
    return explain.AttentionRollout(model) if "attention_0" in taps.names(model) else explain.FeatureMapAttention(model)


def mean(values):
    """Mean as a float, NaN of nothing."""
    return float(np.mean(values)) if len(values) else float("nan")


def draw(pictures, path):
    """Images with their maps over them, a row for each name, each map on its own scale, the patch in a frame."""
    figure = plot.rows({name: images for name, (images, *_) in pictures.items()})
    for row, (_, maps, where) in enumerate(pictures.values()):
        for ax, heatmap, (top, left, bottom, right) in zip(figure.axes[row * len(maps) :], maps, where, strict=False):
            ax.imshow(heatmap, cmap="jet", alpha=0.45)
            frame = Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, edgecolor="white")
            ax.add_patch(frame)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


PARTS = {part.__name__: part for part in (natural, adversarial, targeted, positions, shift, transfer, attention)}


def main():
    parser = patch_models.options(__doc__, out="patch_robustness")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--shares", type=float, nargs="+", default=[32 / 196, 96 / 196, 160 / 196, 1.0])
    parser.add_argument("--corruptions", nargs="+", default=list(CORRUPTIONS), choices=CORRUPTIONS)
    parser.add_argument("--num-patches", type=int, default=4, help="adversarial patches, at most")
    parser.add_argument("--map-examples", type=int, default=64, help="images of the map of positions")
    args = parser.parse_args()
    train, test = patch_models.streams(args)
    networks = patch_models.models(args, train, test)
    accuracies = patch_models.clean(networks, test)
    print(accuracies)
    setting = Setting(args, networks, *patch_models.examples(args, networks, test))
    for name in args.parts:
        started = time.perf_counter()
        table = PARTS[name](setting)
        seconds = round(time.perf_counter() - started)
        print(f"\n{name}, {len(setting.x)} images, {seconds} s:")
        print(mean_over_corruptions(table) if name == "natural" else table, flush=True)
        table.to_csv(args.out / f"{name}.csv")
        how = {"options": patch_models.settings(args), "models": accuracies.rows, "seconds": seconds}
        table.to_json(args.out / f"{name}.json", **how, examples=len(setting.x))
    print(f"\nIn {args.out}: {', '.join(f'{name}.csv' for name in args.parts)}")


if __name__ == "__main__":
    main()
