"""`python -m lorap_exp`: see `lorap_exp/commands/main.py`."""

from lorap_exp.commands.main import main

if __name__ == "__main__":
    main()
