"""Makes the golden vectors in tests/data, or with --check makes them again and compares.

    python tools/goldens/make.py [--check] [CASE ...]        (no CASE: all of them)
"""

import argparse
import importlib
import sys
import tempfile
import time
from pathlib import Path

from golden import compare

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data"
MODULES = ("synthetic", "ops", "autoencoder_kl", "autoencoder_tiny", "infgen", "infd", "clip", "unet")


def all_cases() -> dict:
    """name -> function that makes the case"""
    return {name: make for module in MODULES for name, make in importlib.import_module(module).CASES.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with tests/data instead of writing there")
    parser.add_argument("case", nargs="*")
    args = parser.parse_args()
    cases = all_cases()
    unknown = set(args.case) - set(cases)
    if unknown:
        parser.error(f"no case {', '.join(sorted(unknown))}; there are {', '.join(cases)}")
    faults = []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) if args.check else DATA
        for name in args.case or cases:
            begun = time.monotonic()
            case = cases[name]()
            if case is None:
                print(f"{name}: skipped, its weights are not here")
                continue
            case.write(root)
            if args.check:
                faults += compare(name, DATA / name, root / name)
            print(f"{name}: {time.monotonic() - begun:.0f} s", flush=True)
    if args.check:
        if not args.case:
            faults += [f"{p.name}: no script makes it" for p in sorted(DATA.iterdir()) if p.is_dir() and p.name not in cases]
        print("\n".join(faults) if faults else "all as committed")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
