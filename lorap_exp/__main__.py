"""`python -m lorap_exp`: see `lorap_exp/cli.py`."""

from lorap_exp.cli import main

if __name__ == "__main__":
    main()
