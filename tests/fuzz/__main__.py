"""The command, see ``fuzz``."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from fuzz.campaign import main

if __name__ == "__main__":
    sys.exit(main())
