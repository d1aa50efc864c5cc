"""`python -m prefdata.cli`, and `python -m cli` in a bare checkout."""

from .main import main

main()
