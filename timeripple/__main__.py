"""`python -m timeripple`."""

from timeripple.cli import main

main()
