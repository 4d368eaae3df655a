"""What keeping freed memory and huge pages buy: `python -m benchmarks.pages`.

Forward passes of SmolLM2-135M over 2,048 tokens, in bfloat16, in processes of their own and in
turns, with and without `workspace.memory.keep_freed_memory`.
"""

import json
import resource
import statistics
import subprocess
import sys
import time

from lorap_exp.workspace.memory import keep_freed_memory

ROUNDS, PASSES = 3, 6
WHAT = ("seconds of a pass", "of these in the system", "page faults of a pass")


def measure() -> list[float]:
    """The figures of `WHAT` in this process."""
    import torch

    from benchmarks.cost import configuration
    from lorap_exp.models.loading import load_config, load_model

    cfg = configuration()
    cpu = torch.device("cpu")
    model = load_model(cfg.model, load_config(cfg.model), cpu, torch.bfloat16, seed=0)
    ids = torch.randint(0, model.config.vocab_size, (16, 128))
    times: list[float] = []
    with torch.inference_mode():
        model(ids, use_cache=False)
        before = resource.getrusage(resource.RUSAGE_SELF)
        for _ in range(PASSES):
            start = time.perf_counter()
            model(ids, use_cache=False)
            times.append(time.perf_counter() - start)
    after = resource.getrusage(resource.RUSAGE_SELF)
    system, faults = after.ru_stime - before.ru_stime, after.ru_minflt - before.ru_minflt
    return [statistics.median(times), system / PASSES, faults / PASSES]


def main() -> None:
    """Print the table; with an argument, the figures of one process."""
    if len(sys.argv) > 1:
        if sys.argv[1] == "kept":
            keep_freed_memory()  # before torch is imported
        print(json.dumps(measure()))
        return
    found: dict[str, list[list[float]]] = {"given back": [], "kept": []}
    for _ in range(ROUNDS):
        for how, runs in found.items():
            command = [sys.executable, "-m", "benchmarks.pages", how]
            run = subprocess.run(command, check=True, capture_output=True, text=True)
            runs.append(json.loads(run.stdout.splitlines()[-1]))
    print("| freed memory | " + " | ".join(WHAT) + " |\n| --- |" + " --- |" * len(WHAT))
    for how, runs in found.items():
        medians = [statistics.median(column) for column in zip(*runs, strict=True)]
        print(f"| {how} | {medians[0]:.2f} | {medians[1]:.2f} | {medians[2]:.0f} |")


if __name__ == "__main__":
    main()
