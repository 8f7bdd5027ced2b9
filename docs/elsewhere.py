"""Pages that stand elsewhere in the repository, where people look for them, and are pages of the site, too."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "examples/serve/README.md": "serve_scripts.md",
    "examples/reproduce/REPRODUCTION.md": "rows.md",
}
_LINK = re.compile(r"\]\((?!https?:|#|mailto:)")


def write(folder):
    """Copy them, with links that lead to the same from there.

    Args:
        folder: pathlib.Path, two below the root of the repository.
    """
    folder.mkdir(exist_ok=True)
    for there, here in PAGES.items():
        base = (pathlib.PurePosixPath("../..") / there).parent
        text = _LINK.sub(f"]({base}/", (ROOT / there).read_text())
        path = folder / here
        if not path.is_file() or path.read_text() != text:  # Sphinx reads what is newer
            path.write_text(text)


def linked(app, name, source):
    """Links to these pages lead to their copies; a handler of Sphinx's event ``source-read``."""
    up, folder = ("../../", "") if name.startswith("elsewhere/") else ("../", "elsewhere/")
    for there, here in PAGES.items():
        source[0] = source[0].replace(f"]({up}{there}", f"]({folder}{here}")
