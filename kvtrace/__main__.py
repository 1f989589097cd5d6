"""`python -m kvtrace`: the same command where the script is not on the path."""

import sys

from kvtrace.cli import main

if __name__ == "__main__":
    sys.exit(main())
