"""`python -m featkit`."""

from featkit.cli import main

main(prog_name="featkit")
