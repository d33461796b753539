"""`python -m heat` is the same as `heat`."""

import sys

from .cli import main

sys.exit(main())
