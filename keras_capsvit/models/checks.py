"""What every model refuses before it is built."""


def check_images(input_shape, num_classes, *, smallest=1):
    """Refuse shapes that are not images of at least ``smallest`` pixels each way, and fewer than two classes."""
    if len(input_shape) != 3 or any(not isinstance(size, int) or size < 1 for size in input_shape):
        raise ValueError(f"input_shape must be (height, width, channels), positive ints; received {input_shape}.")
    if not isinstance(num_classes, int) or num_classes < 2:
        raise ValueError(f"num_classes must be an int, at least 2; received {num_classes!r}.")
    if min(input_shape[:2]) < smallest:
        raise ValueError(
            f"Images of {input_shape[0]}x{input_shape[1]} are too small for this network; the smallest legal size "
            f"is {smallest}x{smallest}."
        )


def check_positive(**arguments):
    """Refuse arguments that are not positive ints, or tuples of them."""
    for name, value in arguments.items():
        for one in value if isinstance(value, tuple) else (value,):
            if not isinstance(one, int) or one < 1:
                raise ValueError(f"{name} must be made of positive ints; received {value!r}.")
