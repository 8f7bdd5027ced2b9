"""Rows by chapter: settings in ``chapter_N.toml``, code in ``chapter_N.py``.

A row is a table of the TOML file. Its keys are those of the row, and over them those of the profile:

    ["3.T1"]
    title, lines (of the thesis), claim (one sentence), unit
    published = { name = number }            what the thesis reports; a measured number has the same name
    tolerance                                how far means may be from the published numbers to be reproduced
    order = [["a", "b"]]                     the trend: a has to be larger than b
    equal = [["a", "b", 0.5]]                ... or they are that near; above / below = { name = bound }
    needs = ["mnist", "keras_hub", "w.npz"]  data sets, packages (inputs.PACKAGES), files of --weights
    minutes = { cpu = 20 }, seeds = { cpu = [0, 1] }
    curve_x, curve_y                         labels of axes, where the function returns curves
    finding                                  two sentences where the thesis is contradicted, and the experiment
    not_run                                  why it has not been run, where more is to be said than what it needs
    earlier = [{ file, command, values }]    numbers of a script of before, see ``earlier.read``
    like = "3.T1"                            the sizes of a row above, where this one has none of its own
    ["3.T1".profiles.cpu]                    also smoke, gpu and full
    scaled                                   what is smaller than in the thesis, a sentence
    ...                                      whatever the function reads: ``setting.train``

Its function is ``@row("3.T1") def name(setting, run)`` and returns ``{"measured": {name: number}}``, and if it likes
``"curves"`` (``{name: numbers}``, or ``{name: {"x": numbers, "y": numbers}}``) and ``"notes"`` (str). What ``run``
gives is described in ``running.Run``: data, trained models that rows share, steps that are kept, places for pictures.
"""
