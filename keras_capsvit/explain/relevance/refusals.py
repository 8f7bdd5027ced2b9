"""What graphs relevance cannot be had of, and how the messages name it."""

import numpy as np
import tensorflow as tf

_CONTROL_FLOW = {
    *("While", "StatelessWhile", "If", "StatelessIf", "Case", "StatelessCase", "Switch", "Merge", "Enter", "Exit"),
    *("NextIteration", "PyFunc", "PyFuncStateless", "EagerPyFunc", "XlaCallModule", "SymbolicGradient", "RemoteCall"),
}
_RANDOM = ("Random", "StatelessRandom", "TruncatedNormal", "StatelessTruncatedNormal", "ParameterizedTruncated")
_REDUCTIONS = {"Mean", "Sum", "Max", "Min", "Prod"}
_OF_SHAPE = {"Shape", "ShapeN", "Size", "Rank"}
_SAME_AXES = {
    *("Identity", "Cast", "Mul", "AddV2", "Add", "Sub", "RealDiv", "Neg", "Maximum", "Minimum", "ClipByValue"),
    *("Pad", "PadV2", "MirrorPad", "ResizeBilinear", "ResizeNearestNeighbor", "ResizeBicubic", "SpaceToBatchND"),
}


class UnsupportedOpError(ValueError):
    """A model has ops that relevance cannot pass; the message names them all."""


def check(graph):
    """Refuse what relevance cannot pass, or would not be right for."""
    follow = graph.descendants(graph.input)
    ops = [(name, graph.nodes[name].op) for name in graph.order]
    loops = [f"{op} at {name!r}" for name, op in ops if op in _CONTROL_FLOW and name in follow]
    if loops:
        raise UnsupportedOpError(
            f"Relevance cannot pass control flow that depends on the input; found {', '.join(loops)}. Unroll loops "
            "with Python's range (the number of iterations must not be a tensor), and replace conditions on "
            "tensors by where."
        )
    half = next((name for name in graph.order if graph.dtypes.get(f"{name}:0") in (tf.float16, tf.bfloat16)), None)
    if half is not None:
        raise UnsupportedOpError(
            "Expected a model that computes in float32 or float64, for its range and precision; received "
            f"{graph.dtypes[half + ':0'].name} at {half!r}. Load the model with the dtype policy float32: set "
            "layer.dtype_policy = 'float32' for all layers, those of nested models too, and before Keras 3.10 clone it "
            "(keras.models.clone_model, set_weights); export a served model anew."
        )
    random = [f"{op} at {name!r}" for name, op in ops if op.startswith(_RANDOM)]
    batch = [f"{op} over the batch at {name!r}" for name, op in ops if name in follow and _over_batch(graph, name)]
    if random or batch:
        raise UnsupportedOpError(
            f"Expected a model in inference mode; found {', '.join(random + batch)}, as with training=True. Trace "
            "or export it with training=False."
        )
    reader = next(_channels_first(graph), None)
    if reader is not None:
        raise UnsupportedOpError(
            f"Expected images with their channels last; the input {tuple(graph.specs[0].shape)} has them first, as "
            f"{graph.nodes[reader].op} at {reader!r} reads it. Wrap the model: images = keras.Input((H, W, C)); "
            "keras.Model(images, model(keras.layers.Permute((3, 1, 2))(images)))."
        )


def as_float(graph, dtype):
    """Let an integer input be a float one, if nothing but casts read it.

    Returns:
        ``(dtype, limits)`` of the float, and the pair of numbers that it lies between.
    """
    if dtype.is_floating:
        return dtype, (-np.inf, np.inf)
    same, readers, casts = {graph.input}, [], []
    for name in graph.order:
        node = graph.nodes[name]
        if not any(tensor.partition(":")[0] in same for tensor in graph.inputs(name)):
            continue
        readers.append(node)
        if node.op == "Cast" and tf.as_dtype(node.attr["DstT"].type).is_floating:
            casts.append(node)
        elif node.op == "Identity":
            same.add(name)
        elif node.op not in _OF_SHAPE:
            raise UnsupportedOpError(
                f"Expected images of floats, or of {dtype.name} that the model casts to floats first; found {node.op} "
                f"at {name!r}, which reads {dtype.name}. Explain the part of the model that begins after it."
            )
    if not casts:
        raise UnsupportedOpError(f"Expected a model that casts its input of {dtype.name} to floats; found no cast.")
    for node in readers:
        node.attr["SrcT" if node.op == "Cast" else "T"].type = casts[0].attr["DstT"].type
    return tf.as_dtype(casts[0].attr["DstT"].type), ((0, 1) if dtype.is_bool else (dtype.min, dtype.max))


def _over_batch(graph, name):
    node, inputs = graph.nodes[name], graph.inputs(name)
    if node.op.startswith("FusedBatchNorm"):
        return node.attr["is_training"].b
    if node.op not in _REDUCTIONS or inputs[1] not in graph.constants:
        return False
    shape = graph.shapes[inputs[0]]
    axes = {int(axis) % shape.rank for axis in np.ravel(graph.constants[inputs[1]].numpy())} if shape.rank else set()
    return any(shape[axis] is None for axis in axes)


def _channels_first(graph):
    """Ops that take the second axis of the input for the channels."""
    if graph.specs[0].shape.rank != 4:
        return
    axes = {graph.input: (0, 1, 2, 3)}  # of the input, by the axis of a node's output
    for name in graph.order:
        node, inputs = graph.nodes[name], graph.inputs(name)
        before = next((axes[node_of] for node_of in (i.partition(":")[0] for i in inputs) if node_of in axes), None)
        if before is None:
            continue
        if "data_format" in node.attr:
            if before[1 if node.attr["data_format"].s.startswith(b"NC") else -1] == 1:
                yield name
        elif node.op == "Transpose" and inputs[1] in graph.constants:
            axes[name] = tuple(before[axis] for axis in graph.constants[inputs[1]].numpy())
        elif node.op in _SAME_AXES:
            axes[name] = before
