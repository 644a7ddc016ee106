"""Converts a checkpoint: `python convert_weights.py SOURCE TARGET` is `pvc convert SOURCE TARGET`.

All of it is in `conversion/convert.py`; its two names are kept here for those who import them.
"""

import sys

from pvc.conversion.convert import Conversion, Options

__all__ = ["Conversion", "Options"]


if __name__ == "__main__":
    from pvc.cli import app

    app(["convert", *sys.argv[1:]])
