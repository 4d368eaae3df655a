"""`--help`: every group and option with the first line of its file, so it cannot go stale.

Methods are listed by kind.
"""

from pathlib import Path

INTRODUCTION = """\
lorap_exp: compress a language model, score it, and end in the table of the paper.

  python -m lorap_exp model=… ratio=… method=… calibration=… evaluation=… data=… logging=…
  python -m lorap_exp -m ratio=0.2,0.5 method=lorap,svd        a sweep: every combination
  python -m lorap_exp experiment=quickstart                    a prepared sweep
  python -m lorap_exp -m … --dry-run                           what would run, is done or failed
  python -m lorap_exp report outputs/<name>                    its table and plot, from disk
  python -m lorap_exp info outputs/<name>/<job>/model          what was done to each layer
  python -m lorap_exp export outputs/<name>/<job> --to dense   another form of it; also: push
  python -m lorap_exp model fetch smollm2_135m                 a model as a folder; also: model list
  python -m lorap_exp data fetch --folder data                 real data, for runs without a network
  python -m lorap_exp data verify --folder data                its files checked; also: data where
  python -m lorap_exp store list                               what jobs share; also: store prune

Settings (key=value; docs/settings.md has all, `--cfg job` prints them with their values):
  name       folder of the sweep under outputs/; the same command goes on where it stopped
  ratio      share of the weights to remove, in [0, 1)
  target.bytes, target.perplexity              in its place: the most that the model may have
  ratio_of   decoder (attention and MLP, as the paper counts) or model (all parameters)
  device     auto, cpu, cuda or cuda:N          dtype   float32, bfloat16 or float16
  export     factored, or dense (factors multiplied out for tools that know only dense layers)
  keep_model false removes the saved model once a job is finished (large sweeps)
  training@method.stages.layers.training=small   how a replacement of removed layers is trained
  model.path any hub id or local folder         seed    of calibration windows and random models
"""
EXPERIMENTS = """\
# Experiments

Each file of `conf/experiment/` is one sweep. Its header says what it reproduces, the published
number, the hardware (for GPUs expected, not measured) and the command; the second command runs it
on a small model, on data laid out as [data](data.md) says.
"""
ORDER = [
    "model",
    "method",
    "training",
    "calibration",
    "evaluation",
    "data",
    "logging",
    "analysis",
    "experiment",
]

KINDS = ("low-rank", "width", "depth", "rotation", "stacks")
"""Of methods, as the second comment line of each file says; stacks are several kinds in one."""


def conf_folder() -> Path:
    """The configuration tree: inside the package when installed, beside it in a checkout."""
    inside = Path(__file__).resolve().parent.parent / "conf"
    return inside if inside.is_dir() else inside.parent.parent / "conf"


def options_of(group: str) -> list[str]:
    """The options of a group of `conf/`, those in folders too."""
    folder = conf_folder() / group
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


def catalogue() -> str:
    """The help text."""
    lines = [INTRODUCTION]
    for group in [*ORDER, "hydra/launcher"]:
        folder = conf_folder() / group
        options = sorted(folder.rglob("*.yaml"))
        if not options:
            continue
        lines.append(f"{group}=")
        for kind in KINDS if group == "method" else ("",):
            chosen = [path for path in options if not kind or kind_of(path) == kind]
            if kind and chosen:
                lines.append(f" {kind}")
            for path in chosen:
                name = str(path.relative_to(folder).with_suffix(""))
                lines.append(f"  {name:<22} {_comments(path)[0]}")
        lines.append("")
    return "\n".join(lines)


def kind_of(method: Path) -> str:
    """The kind that a method's file states.

    Raises:
        ValueError: it states none of the known ones.
    """
    kind = _comments(method)[1].removeprefix("kind: ")
    if kind not in KINDS:
        raise ValueError(f"{method}: the second comment must be # kind: one of {', '.join(KINDS)}")
    return kind


def _comments(path: Path) -> list[str]:
    """The comments of a file, the note on its package left out."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = [line[2:] for line in lines if line.startswith("# ")]
    return [comment for comment in comments if not comment.startswith("@package")]


def experiments_page() -> str:
    """`docs/experiments.md`: the headers of all experiments, so it cannot go stale."""
    lines = [EXPERIMENTS]
    root = conf_folder() / "experiment"
    files = sorted(root.rglob("*.yaml"), key=lambda path: (path.parent != root, str(path)))
    for path in files:
        header = _comments(path)
        name = str(path.relative_to(root).with_suffix(""))
        facts = [line for line in header[1:] if not line.startswith(("Command: ", "Scaled down: "))]
        runs = [line.partition(": ")[2] for line in header[1:] if line not in facts]
        lines += [f"## {name}\n", f"{header[0][0].upper()}{header[0][1:]}.\n"]
        lines += [*(f"- {fact}" for fact in facts), "", "```", *runs, "```", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    print(experiments_page(), end="")
