"""The version of zmqrt, which the package is built with, too."""

from typing import Final

VERSION: Final = "0.1.0"
