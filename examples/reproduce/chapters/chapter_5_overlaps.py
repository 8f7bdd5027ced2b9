"""Overlapping digits (thesis 5.3.2)."""

from rows import row

from chapters import capsules

# Table 5.4: what is changed of CapsNet.
ABLATION = {
    "CapsNet": {},
    "no routing": {"routing": "uniform"},
    "shared matrix": {"shared_transform": True},
    "no squash": {"squash": False},
    "unconditional reconstruction": {"reconstruction": "unconditional"},
    "no reconstruction": {"reconstruction": None},
    "binary cross-entropy": {"loss": "binary_cross_entropy"},
}


@row("5.T4")
def components(setting, run):
    return {
        "measured": {
            title: capsules.overlaps(setting, run, title, "CapsNet", **options) for title, options in ABLATION.items()
        }
    }


@row("5.F3")
def data_and_kernels(setting, run):
    """ConvNet-FC with kernels as large as CapsNet's, ConvNet-FC(LK), over numbers of images and sizes of kernels."""
    measured, curves = {}, {}
    for name in ("CapsNet", "ConvNet-FC"):
        for kernel in setting.kernels:
            title = f"{name} {kernel}x{kernel}"
            measured[title] = capsules.overlaps(setting, run, title, name, kernel_size=kernel)
        by_size = {}
        for pairs in setting.sizes:
            title = f"{name}, {pairs} a digit"
            by_size[pairs] = capsules.overlaps(setting, run, title, name, pairs=pairs, kernel_size=setting.kernel)
        measured[f"{name}, most data"] = by_size[max(by_size)]
        curves[name] = {"x": list(by_size), "y": list(by_size.values())}
    return {"measured": measured, "curves": curves}
