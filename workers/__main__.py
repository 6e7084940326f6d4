"""`python -m workers`: the operator's command line."""

from workers.cli import main

main()
