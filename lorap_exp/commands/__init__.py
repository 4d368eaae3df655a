"""The command line: Hydra composes a job; `report`, `info`, `data` and `store` stand beside it."""
