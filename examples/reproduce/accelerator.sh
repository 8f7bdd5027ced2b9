#!/usr/bin/env bash
# Rows on one accelerator in ten minutes, on JAX: prepared where there is a network, run where there may be none.
#
#   examples/reproduce/accelerator.sh prepare FOLDER            wheels of what is needed, and the data as TFDS folders
#   examples/reproduce/accelerator.sh run FOLDER [MINUTES]      environment from the wheels, rows of the profile gpu
#
# Both machines have the same Python and processor. Rows go on where they were interrupted, begin only if they would end
# within the minutes (9 by default), and leave their records in results/rows as they are measured; the most wanted come
# first. Before the command: DATA=FOLDER, TFDS folders to copy; SETS="mnist cifar10", not all data; OUT=FOLDER, other
# records; ROWS=3.T1,3.X; JAX=jax, without an accelerator; PROFILE=smoke, to try it.
set -euo pipefail
verb=${1:?prepare or run} folder=$(mkdir -p "${2:?a folder}" && cd "$2" && pwd) minutes=${3:-9}
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
# TensorFlow reads the data; without support of GPUs, so that it leaves the accelerator to JAX.
packages=("${JAX:-jax[cuda12]}" tensorflow-cpu keras h5py "numpy>=2.0" safetensors "tensorflow-datasets>=4.9" wheel
    importlib_resources scikit-learn scipy matplotlib "tf-keras-vis>=0.8.7" jinja2 "setuptools>=77"
    imagecorruptions-imaug)
read -ra sets <<<"${SETS:-mnist fashion_mnist cifar10 svhn_cropped}"
rows=${ROWS:-3.T1,3.T2,4.T1,5.T1,3.X,3.F3,3.F2,3.F4,3.F5,3.F6,3.F7,6.T1,6.T2,7.T2}

prepare() {
    "$python" -m pip wheel -q -w "$folder/wheels" "${packages[@]}"
    mkdir -p "$folder/tfds"
    if [ -n "${DATA:-}" ]; then
        for name in "${sets[@]}"; do
            [ ! -d "$DATA/$name" ] || cp -r "$DATA/$name" "$folder/tfds/"
        done
    fi
    for name in "${sets[@]}"; do
        [ ! -d "$folder/tfds/$name" ] || continue
        environment "$folder/preparing"
        KERAS_BACKEND=jax "$folder/preparing/bin/python" -c \
            "from keras_capsvit import data; data.load('$name', data_dir='$folder/tfds', download=True)" ||
            echo "$name could not be had: rows that need it will be skipped" >&2
    done
    rm -rf "$folder/preparing"
    du -sh "$folder/wheels" "$folder/tfds"
}

environment() {
    [ ! -f "$1/installed" ] || return 0
    "$python" -m venv "$1"
    "$1/bin/pip" install -q --no-index --find-links "$folder/wheels" "${packages[@]}"
    "$1/bin/pip" install -q --no-index --no-deps --no-build-isolation -e .
    touch "$1/installed"
}

run() {
    environment "$folder/environment"
    export KERAS_BACKEND=jax
    "$folder/environment/bin/python" -c "import jax; print('on', jax.devices()[0].device_kind)"
    "$folder/environment/bin/python" examples/reproduce/run.py --only "$rows" --profile "${PROFILE:-gpu}" --dtype auto \
        --seeds 0 --minutes "$minutes" --data-dir "$folder/tfds" --work "$folder/work" ${OUT:+--results "$OUT"}
}

case $verb in
    prepare) prepare ;;
    run) run ;;
    *) echo "Expected prepare or run; received $verb." >&2 && exit 2 ;;
esac
