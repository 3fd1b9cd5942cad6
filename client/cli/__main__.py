"""`python -m zmqrt.client.cli`: the `zmqrt` command where no script is on the path."""

import sys

from .main import main

sys.exit(main())
