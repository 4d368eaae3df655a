"""Budget to plan: integers and shapes only; never imports torch, nor anything of the project."""
