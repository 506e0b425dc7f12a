"""What an instructor runs: ``python -m dgm_course <command>``.

Every command imports what it needs when it runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

#: Modules of `dgm_course.reproduce`, each with ``Settings`` (a dataclass with ``num_seeds``, ``quick()`` and
#: ``with_steps(n)``) and ``run(settings, command=, report=)``, which returns its record.
EXPERIMENTS = {
    "dequantization": "uniform against variational noise, photo patches of 2 to 8 bits and digits",
    "glow": "Glow on digits and photo patches",
}


def build(options: argparse.Namespace) -> int:
    """Write both editions of the chosen lectures, or compare them with their sources."""
    from dgm_course.notebooks import build as notebooks
    from dgm_course.notebooks.source import BuildError

    try:
        root = notebooks.checkout()
        chosen = notebooks.lectures(root, options.lectures)
        if options.check:
            found = [line for lecture in chosen for line in notebooks.drift(lecture)]
            found += [] if options.lectures else notebooks.strays(root)
            for line in found:
                print(line, file=sys.stderr)
            return 1 if found else 0
        for lecture in chosen:
            notebooks.build(lecture, run=not options.no_execute, report=lambda line: print(line, flush=True))
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def reproduce(options: argparse.Namespace) -> int:
    """Run a paper's experiment again, on one thread, and write its record. It takes minutes."""
    import importlib
    from dataclasses import replace

    import torch

    from dgm_course.reproduce import save

    experiment = importlib.import_module(f"dgm_course.reproduce.{options.experiment}")
    command, settings = f"python -m dgm_course reproduce {options.experiment}", experiment.Settings()
    out = options.out or f"{options.experiment}.json"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if options.quick:
            settings, command = settings.quick(), f"{command} --quick"
        if options.seeds is not None:
            settings = replace(settings, num_seeds=options.seeds)
            command += f" --seeds {options.seeds}"
        if options.steps is not None:
            settings = settings.with_steps(options.steps)
            command += f" --steps {options.steps}"
        record = experiment.run(settings, command=command, report=lambda line: print(line, flush=True))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        torch.set_num_threads(threads)
    save(record, out)
    print(f"{out}: {record.provenance()}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line: one sub-command a function of this module."""
    top = argparse.ArgumentParser(
        prog="python -m dgm_course", description="Tools of the course's instructor."
    )
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    command = commands.add_parser(
        "build", help="write both editions of the lectures from solutions/src", description=build.__doc__
    )
    command.add_argument("lectures", nargs="*", metavar="NN", help="lecture numbers (default: all)")
    command.add_argument(
        "--no-execute",
        action="store_true",
        help="run no notebook: keep the outputs of those whose code has not changed",
    )
    command.add_argument(
        "--check",
        action="store_true",
        help="write nothing; say what differs from the sources, and exit with 1 if anything does",
    )
    command.set_defaults(run=build)
    command = commands.add_parser(
        "reproduce", help="run a paper's experiment again and write its record", description=reproduce.__doc__
    )
    command.add_argument(
        "experiment",
        choices=sorted(EXPERIMENTS),
        help="; ".join(f"{name}: {what}" for name, what in sorted(EXPERIMENTS.items())),
    )
    command.add_argument("--steps", type=int, metavar="N", help="training steps (default: those recorded)")
    command.add_argument("--seeds", type=int, metavar="N", help="number of seeds (default: 3)")
    command.add_argument("--quick", action="store_true", help="tiny models: only shows that it runs")
    command.add_argument("--out", metavar="FILE", help="default: the experiment's name, .json")
    command.set_defaults(run=reproduce)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that ``arguments`` (default: the process's) name and return its exit status."""
    options = parser().parse_args(arguments)
    return options.run(options)


if __name__ == "__main__":
    sys.exit(main())
