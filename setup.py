"""The compiled parts, built where there is a compiler (else those in Python do their work), and the manual."""

from pathlib import Path

from setuptools import Extension, setup

setup(
    data_files=[("share/man/man1", sorted(map(str, Path("man").glob("*.1"))))],
    ext_modules=[
        Extension(".".join(path.with_suffix("").parts), [str(path)], optional=True, extra_compile_args=["-g0"])
        for path in sorted(Path("aiolb").rglob("*.pyx"))
    ],
)
