"""A fuzzer of the public API: good, borderline and hostile arguments, and a verdict on what comes of them.

    python tests/fuzz --calls 20000 --seed 0

``zoo`` has tiny models and arrays; ``values`` makes pools of arguments, ``pools`` has one for every parameter;
``subjects`` is what is called, which enrols by itself; ``calls`` draws one call and judges it; ``campaign`` runs many
of them in a process of their own.
"""
