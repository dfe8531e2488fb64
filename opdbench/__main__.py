"""`python -m opdbench`, for where the `opdbench` script is not on the path."""

import sys

from opdbench.cli.main import main

sys.exit(main())
