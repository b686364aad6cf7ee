"""Compiles the balancer's bytecode, and says whether it is, byte for byte, what is checked in.

Exits 1 if it is not. Where something is mounted at /out, the new bytecode is written there.
"""

from __future__ import annotations

import sys
from pathlib import Path

from aiolb.bpf import compiler
from aiolb.bpf.spec import BYTECODE

OUT = Path("/out")


def main() -> int:
    """Compile, compare, and write."""
    checked_in = {path: path.read_bytes() for path in BYTECODE.values()}
    compiler.main()
    different = 0
    for path, before in checked_in.items():
        now = path.read_bytes()
        different += now != before
        print(f"{path.name}: {'not what' if now != before else 'the same as'} is checked in")
        if OUT.is_dir():
            (OUT / path.name).write_bytes(now)
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
