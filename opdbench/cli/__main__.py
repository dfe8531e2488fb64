"""`python -m opdbench.cli`."""

import sys

from opdbench.cli.main import main

sys.exit(main())
