"""``python -m dynprune_rt.cli``."""

import sys

from dynprune_rt.cli import main

sys.exit(main())
