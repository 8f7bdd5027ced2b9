"""Puts wrong lines into a copy of the package, one at a time, and looks whether the default suite catches them.

    python tests/mutants.py --mutants 60                          # about a minute of a core each
    python tests/mutants.py --mutants 20 --only evaluate attacks

Lines are drawn from ``--seed``, as many of every part in ``PARTS``. A wrong line is one with another comparison,
operator, number, truth value or condition, or without a call whose value nobody takes. First the test files of the part
run, up to the first failure; with ``--whole``, what survives them meets the whole default suite, in a quarter of an
hour. Prints a row for each, and exits with 1 if fewer than nine of ten are caught.
"""

import argparse
import ast
import concurrent.futures
import copy
import functools
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parent.parent
PARTS = {
    "ops": ("ops.py", "ops losses metrics labels layers nodes nan routing transformer_attribution vit"),
    "layers": (
        "layers",
        "layers routing capsnet gracapsnet nodes vit levit certified resnet convnet constructors nan settings labels",
    ),
    "attacks": (
        "attacks",
        "attacks apgd square attack_twins carlini_wagner deepfool fab hyperplane patch_attack patch_fool "
        "patch_transforms auto_attack presets precision detection settings caches nan robustness",
    ),
    "rules": ("explain/relevance/rules.py", "relevance relevance_signs relevance_inputs relevance_models settings"),
    "evaluate": (
        "evaluate",
        "robustness saliency_metrics fidelity deletion patch_metrics certified attack_tables auto_attack "
        "representation detection compare progress table checks explain",
    ),
}
OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
LIMIT = 1500  # seconds that the tests of a mutant may take; one that never ends is caught


def main(arguments=None):
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python tests/mutants.py", description=__doc__.split("\n")[0])
    parser.add_argument("--mutants", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--whole", action="store_true", help="let survivors meet the whole default suite")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="mutants at a time")
    settings = parser.parse_args(arguments)
    mutants = drawn(settings.only, settings.mutants, random.Random(settings.seed))
    caught, judge = 0, functools.partial(judged, whole=settings.whole)
    with concurrent.futures.ThreadPoolExecutor(settings.jobs) as pool:
        for (part, path, line, text, _), by in zip(mutants, pool.map(judge, mutants), strict=True):
            caught += by is not None
            print(f"{'caught' if by else 'SURVIVED':9} {part:9} {path}:{line}  {text}  {by or ''}", flush=True)
    print(f"{caught} of {len(mutants)} caught")
    return int(caught < 0.9 * len(mutants))


def drawn(parts, count, generator):
    """Mutants ``(part, path, line, what is changed, source)``, as many of each part, in an order of their own."""
    mutants = []
    for index, part in enumerate(parts):
        place = ROOT / "keras_capsvit" / PARTS[part][0]
        files = [place] if place.is_file() else sorted(place.glob("*.py"))
        sites = [(file, number) for file in files for number in range(len(list(changes(ast.parse(file.read_text())))))]
        number = count // len(parts) + (index < count % len(parts))
        for file, site in generator.sample(sites, min(number, len(sites))):
            tree = ast.parse(file.read_text())
            line, change = list(changes(tree))[site]
            text = change()
            mutants.append((part, str(file.relative_to(ROOT)), line, text, ast.unparse(tree)))
    return generator.sample(mutants, len(mutants))


def changes(tree):
    """Pairs of a line and a function that changes the tree there and says how."""
    for node in _code(tree):
        if isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp) and type(node.op) in OPERATORS:
            yield node.lineno, lambda node=node: _operator(node, lambda new: setattr(node, "op", new), node.op)
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in OPERATORS:
            yield node.lineno, lambda node=node: _operator(node, lambda new: node.ops.__setitem__(0, new), node.ops[0])
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
            yield node.lineno, lambda node=node: _constant(node)
        elif isinstance(node, ast.If | ast.IfExp):
            yield node.lineno, lambda node=node: _condition(node)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield node.lineno, lambda node=node: _call(node)


def _code(node):
    """Nodes of what is run, without messages of errors, decorators, and what says nothing about a result."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom | ast.Assert):
            continue
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and child in node.decorator_list:
            continue
        yield child
        yield from _code(child)


def _said(before, node):
    return f"{before}  ->  {ast.unparse(node)}"[:140].replace("\n", " ")


def _operator(node, put, old):
    before = ast.unparse(node)
    put(OPERATORS[type(old)]())
    return _said(before, node)


def _constant(node):
    before = copy.copy(node)
    node.value = not node.value if isinstance(node.value, bool) else node.value + 1 if node.value else 1
    return _said(ast.unparse(before), node)


def _condition(node):
    before = ast.unparse(node.test)
    node.test = ast.UnaryOp(ast.Not(), node.test)
    return f"if {before}  ->  not"[:140]


def _call(node):
    before = ast.unparse(node)
    node.value = ast.Constant(None)
    return f"{before}  ->  left out"[:140]


def judged(mutant, whole):
    """The test that catches a mutant, or None; see ``--whole``."""
    part, path, _, _, source = mutant
    with tempfile.TemporaryDirectory() as folder:
        tree = pathlib.Path(folder) / "tree"
        skipped = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__")
        shutil.copytree(ROOT, tree, ignore=skipped)
        (tree / path).write_text(source)
        files = [f"tests/test_{name}.py" for name in PARTS[part][1].split()]
        name = pathlib.Path(path).stem
        files.sort(key=lambda file: name not in (tree / file).read_text())  # those that name it fail first
        return failing(tree, files) or (failing(tree, [f"--ignore={file}" for file in files]) if whole else None)


def failing(tree, arguments):
    """The first test of the default suite that fails in a tree, or None."""
    expression = "not long and not slow and not peers"  # what CI has, where peers are not installed
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "--numprocesses=0",
        "--durations=0",
        "-m",
        expression,
        *arguments,
    ]
    environment = {**os.environ, "PYTHONPATH": str(tree), "TF_CPP_MIN_LOG_LEVEL": "3"}
    try:
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return f"no end after {LIMIT} s"
    if done.returncode == 0:
        return None
    named = [
        line.split(" - ")[0].split(" ")[1] for line in done.stdout.splitlines() if line[:6] in ("FAILED", "ERROR ")
    ]
    return named[0] if named else f"pytest ended with {done.returncode}"


if __name__ == "__main__":
    sys.exit(main())
