"""Run several ``airflow`` commands in one process, because each process needs seconds to start."""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path


def main(folder: Path, commands: dict[str, list[str]]) -> None:
    """
    Run the commands one after the other.

    :param folder: receives a file with the output of each command.
    :param commands: arguments of ``airflow`` by the name of the output file.
    """
    for name, arguments in commands.items():
        with (folder / f"{name}.log").open("w") as log:
            for descriptor in (1, 2):
                os.dup2(log.fileno(), descriptor)
            code = run(arguments)
            sys.stdout.flush()
            log.write(f"exit code {code}\n")


def run(arguments: list[str]) -> object:
    from airflow.__main__ import main as airflow

    sys.argv = ["airflow", *arguments]
    try:
        airflow()
    except SystemExit as end:
        return end.code
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
