"""
Fuzz everything that reads API responses, guided by coverage; checks the property of tests/core/test_fuzz.py.

Stops at the first input whose result is neither a page nor an ``UnleashError``, and saves it as ``crash-<hash>``. Needs
atheris, which no target installs: ``pip install atheris`` (3.1 has wheels for CPython 3.12 and newer).
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import tempfile
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORDS = (
    *('"keys":', '"total_num_pages":', '"data":', '"timestamp"', '"count"', '"frame_number"', '"source_file_name"'),
    *("?token=", "1e999", "NaN", "null", "true", "[[", "]]", "[{", "}]", "\\ud800", "2020-08-17T02:08:49.000Z"),
)


def main() -> None:
    """Fuzz for some seconds, starting from the documented responses."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(1, 2**31))
    parser.add_argument("--corpus", type=Path, help="folder of inputs to start from; new inputs are added")
    options = parser.parse_args()
    atheris = import_module("atheris")
    with atheris.instrument_imports(include=["airflow_provider_unleash"]):
        check_any_bytes = import_module("tests.core.test_fuzz").check_any_bytes
    logging.disable(logging.WARNING)  # otherwise each unknown key logs a warning
    with tempfile.TemporaryDirectory(prefix="unleash-fuzz-") as folder:
        words = Path(folder, "words")
        words.write_text("".join('"{}"\n'.format(word.replace("\\", "\\\\").replace('"', '\\"')) for word in WORDS))
        corpus = options.corpus or Path(folder, "corpus")
        corpus.mkdir(parents=True, exist_ok=True)
        limits = ["-max_len=4096", "-timeout=20", "-rss_limit_mb=2048", f"-dict={words}"]
        folders = [str(corpus), str(ROOT / "tests" / "samples")]  # new inputs go to the first folder
        options_of_libfuzzer = [f"-max_total_time={options.seconds}", f"-seed={options.seed}", *limits, *folders]

        def check(data: bytes) -> None:
            check_any_bytes(data)

        atheris.Setup([sys.argv[0], *options_of_libfuzzer], check)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
