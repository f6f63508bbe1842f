"""`python -m swarmd`."""

from swarmd.cli import main

main()
