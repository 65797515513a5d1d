"""python -m nppkit: the command line."""

from nppkit.cli import main

main()
