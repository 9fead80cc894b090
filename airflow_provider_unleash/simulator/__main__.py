"""The command line: ``python -m airflow_provider_unleash.simulator --help``."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from dataclasses import Field, fields
from typing import Any

from airflow_provider_unleash.simulator.account import Options
from airflow_provider_unleash.simulator.faults import FAULT_KINDS, Fault, parse_fault
from airflow_provider_unleash.simulator.server import DEFAULT_KEYS, Simulator

FAULT_HELP = """\
faults:
{kinds}

  Optional fields: path (a part of the request path), page, times (default 1; none for no limit),
  after (number of matching requests to let through first), probability (default 1), retry_after (seconds, or
  date:SECONDS for an HTTP date), seconds, location, status (replaces the status of the kind).
  This example refuses page 2 three times, then cuts short one response in ten:

    --fault kind=429,times=3,retry_after=1,page=2 --fault kind=half_body,times=none,probability=0.1

control while it runs, from this machine, without a key:
  POST   /_simulator/faults    add a fault such as {{"kind": "429", "times": 3}}, or a list of them
  DELETE /_simulator/faults    remove all faults
  GET    /_simulator/requests  list the requests so far
  DELETE /_simulator/requests  clear this list
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    values = vars(parser.parse_args(argv))
    stop_signals = {signal.SIGTERM, signal.SIGINT}
    # Block them before a thread starts that could receive them. A signal handler that sets a threading.Event
    # is no alternative: it can deadlock with the thread that waits for the event.
    signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals)
    try:
        with Simulator(**values) as simulator:
            print(f"Unleash live simulator on {simulator.base_url}", flush=True)
            signal.sigwait(stop_signals)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    return 0


def build_parser() -> argparse.ArgumentParser:
    kinds = "\n".join(f"  {kind:<12} {text}" for kind, text in FAULT_KINDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m airflow_provider_unleash.simulator",
        description="A simulator of the Unleash live Analytics API.",
        epilog=FAULT_HELP.format(kinds=kinds),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    keys = " and ".join(DEFAULT_KEYS)
    add("--host", help="address to listen on (default: 127.0.0.1)")
    add("--port", type=int, default=8642, help="port to listen on; 0 picks a free one (default: 8642)")
    add("--api-key", dest="api_keys", action="append", metavar="KEY", help=f"replaces {keys}; repeatable")
    add("--log", metavar="FILE", help="append each request to this file, as a line of JSON")
    add("--fault", dest="faults", action="append", type=_fault_argument, metavar="F", help="see below; repeatable")
    for option in fields(Options):
        add(f"--{option.name.replace('_', '-')}", **_argument_of(option))
    return parser


def _argument_of(option: Field[Any]) -> dict[str, Any]:
    default, text = option.default, option.metadata["help"]
    if default not in (None, "", ()):
        text += f" (default: {default})"
    if isinstance(default, bool):
        return {"action": argparse.BooleanOptionalAction, "help": text}
    kind = {tuple: lambda ids: tuple(ids.split(",")), type(None): int}.get(type(default), type(default))
    choices = option.metadata["choices"] or None
    return {"type": kind, "choices": choices, "metavar": None if choices else "X", "help": text}


def _fault_argument(text: str) -> Fault:
    try:
        return parse_fault(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
