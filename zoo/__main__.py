"""``python -m zoo``: take architectures through all stages, in processes of their own."""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from zoo.architecture import Architecture
from zoo.registry import architectures, chosen
from zoo.report import MARKS, passed, read_json, show, write_json, write_markdown
from zoo.stages import Result
from zoo.worker import run_all


def main() -> int:
    """Run the command line; the exit code is 1 if any stage failed."""
    options = _parser().parse_args()
    try:
        wanted = chosen(options.names)
    except KeyError as error:
        print(f"there is no architecture or family {error}; see --list", file=sys.stderr)
        return 2
    if options.list:
        for architecture in wanted:
            print(architecture.family, architecture.name)
        return 0
    known = architectures()
    kept = {n: r for n, r in read_json(options.json).items() if n in known}
    results = {} if not options.resume else {n: r for n, r in kept.items() if passed(r)}
    waiting = [a for a in wanted if a.name not in results]
    console = Console(width=None if sys.stdout.isatty() else 180)
    for done, (architecture, rows) in enumerate(run_all(waiting, options.jobs, options.timeout), 1):
        results[architecture.name] = rows
        _progress(console, f"{done}/{len(waiting)}", architecture, rows)
        write_json(options.json, known, _ordered(known, results))
    results = _ordered(known, results)
    write_json(options.json, known, results)
    write_markdown(options.markdown, known, results)
    show(console, known, results)
    return int(not all(map(passed, results.values())))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m zoo", description=__doc__)
    parser.add_argument("names", nargs="*", help="architectures or families; all if none")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for an architecture")
    parser.add_argument("--json", type=Path, default=Path("zoo-out/zoo.json"))
    parser.add_argument("--markdown", type=Path, default=Path("zoo-out/architectures.md"))
    parser.add_argument("--resume", action="store_true", help="keep what passed in --json")
    parser.add_argument("--list", action="store_true", help="list the architectures")
    return parser


def _progress(console: Console, count: str, architecture: Architecture, rows: list[Result]) -> None:
    marks = "".join(MARKS[result.status] or " " for result in rows)
    seconds = sum(result.seconds for result in rows)
    failed = ", ".join(result.stage for result in rows if result.status == "failed")
    console.print(f"{count:>8} {architecture.name:<28} {marks} {seconds:4.0f} s  {failed}")


def _ordered(
    known: dict[str, Architecture], results: dict[str, list[Result]]
) -> dict[str, list[Result]]:
    return {name: results[name] for name in known if name in results}


if __name__ == "__main__":
    sys.exit(main())
