import ast
import random

import mutants

SOURCE = '''
def clipped(x, low=0, strict=True):
    """Say 1 + 1."""
    check(x)
    if x < low and strict:
        raise ValueError(f"{low + 1} is above {x}")
    return x + 2.0 * low
'''


def test_every_change_is_one_of_what_is_computed():
    whole, texts, sources = ast.unparse(ast.parse(SOURCE)), [], set()
    for site in range(len(list(mutants.changes(ast.parse(SOURCE))))):
        tree = ast.parse(SOURCE)
        _, change = list(mutants.changes(tree))[site]
        texts.append(change())
        sources.add(ast.unparse(tree))
        compile(ast.unparse(tree), "mutant", "exec")
    assert whole not in sources
    assert len(sources) == len(texts)
    assert sorted(texts) == [
        "0  ->  1",
        "2.0  ->  3.0",
        "2.0 * low  ->  2.0 / low",
        "True  ->  False",
        "check(x)  ->  left out",
        "if x < low and strict  ->  not",
        "x + 2.0 * low  ->  x - 2.0 * low",
        "x < low  ->  x <= low",
        "x < low and strict  ->  x < low or strict",
    ]


def test_the_same_seed_draws_the_same_and_of_every_part():
    drawn, again = (mutants.drawn(list(mutants.PARTS), 10, random.Random(3)) for _ in range(2))
    assert drawn == again
    assert {part for part, *_ in drawn} == set(mutants.PARTS)
    for _, path, _, _, source in drawn:
        assert source != ast.unparse(ast.parse((mutants.ROOT / path).read_text()))
