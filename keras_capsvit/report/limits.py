"""What an audit did not do, and what its figures depend on."""

import platform

from keras_capsvit.report.sections import Section


def limits(subject, results):
    """What was left out and why, how many images, and how every figure is repeated.

    Args:
        subject: Subject.
        results: dict from names of steps to what they came to, as JSON keeps it.
    """
    section = Section(how="")
    rows = [
        {"step": step["title"], "what was not run, and why": reason}
        for step in results.values()
        for reason in step["left_out"]
    ]
    section.table("left_out", "What was not run, and why", rows)
    if not rows:
        section.say("Nothing was left out.")
    warned = [{"step": step["title"], "warning": text} for step in results.values() for text in step["warnings"]]
    if warned:
        section.table("warnings", "Warnings while it ran", warned)
    used = [
        {
            "step": step["title"],
            "images": len(step["numbers"]) if step["numbers"] is not None else len(subject.predictions.label),
            "seconds": step["seconds"],
            "by hand": step["how"],
        }
        for step in results.values()
        if step["how"]
    ]
    section.table("steps", "Images, seconds and calls", used, {"images": "count", "seconds": "seconds"})
    section.figure("seed", "Seed", subject.seed)
    section.figure("effort", "Effort", subject.effort.name, "text")
    section.figure("machine", "Machine", f"{platform.system()} {platform.machine()}", "text")
    section.say(
        "Robust accuracies are upper bounds: another attack may find more. Corruptions have the strengths that were "
        "made for images of 224x224 pixels. Metrics of explanations say how maps relate to this model's scores, not "
        "whether a person would agree."
    )
    return section
