"""Capsule networks beside ConvNets on deformed images (thesis chapter 5)."""

from rows import row

from chapters import capsules
from keras_capsvit import data

MODELS = ("ConvNet-FC", "CapsNet", "CapsNet-NoR", "Aff-CapsNet-DR", "Aff-CapsNet", "ConvNet-Avg")
# Table 5.2: what is changed of Aff-CapsNet.
AFFINE_ABLATION = {
    "Aff-CapsNet": {},
    "dynamic routing": {"routing": "dynamic"},
    "no shared matrix": {"shared_transform": False},
    "no squash": {"squash": False},
    "unconditional reconstruction": {"reconstruction": "unconditional"},
    "no reconstruction": {"reconstruction": None},
    "cross-entropy": {"loss": "cross_entropy"},
}


def sizes(names, kernels=(None,)):
    """Sizes of models as large as the thesis's for its 40x40 images, in million parameters, by the rows' names."""
    info = data.info("affnist")
    return {
        f"{kernel_title(name, kernel)}, million parameters": capsules.million_parameters(
            name, info, **kernel_option(kernel)
        )
        for name in names
        for kernel in kernels
    }


def kernel_title(name, kernel):
    return name if kernel is None else f"{name} {kernel}x{kernel}"


def kernel_option(kernel):
    return {} if kernel is None else {"kernel_size": kernel}


@row("5.T1")
def models(setting, run):
    result = capsules.joined(capsules.affine(setting, run, name, name) for name in MODELS)
    if not run.smoke:  # they are large
        result["measured"] |= sizes(MODELS)
    return result


@row("5.T2")
def components(setting, run):
    return capsules.joined(
        capsules.affine(setting, run, title, "Aff-CapsNet", **options) for title, options in AFFINE_ABLATION.items()
    )


@row("5.T3")
def kernels(setting, run):
    names = ("CapsNet", "ConvNet-FC", "ConvNet-Avg")
    pairs = [(name, kernel) for name in names for kernel in setting.kernels]
    result = capsules.joined(
        capsules.affine(setting, run, kernel_title(name, kernel), name, **kernel_option(kernel))
        for name, kernel in pairs
    )
    if not run.smoke:
        result["measured"] |= sizes(names, setting.kernels)
    return result


@row("5.S1")
def groups(setting, run):
    """Capsule groups and their dimensions; with fewer groups of one dimension the second convolution has fewer maps."""
    return capsules.joined(
        capsules.affine(setting, run, group_title(count, dim), "Aff-CapsNet", num_types=count, primary_dim=dim)
        for count, dim in setting.groups
    )


def group_title(count, dim):
    return f"{count} {'group' if count == 1 else 'groups'} of {dim}"
