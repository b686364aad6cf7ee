"""The compiled parts, built where there is a compiler; those in pure Python do their work where there is none."""

from pathlib import Path

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(".".join(path.with_suffix("").parts), [str(path)], optional=True, extra_compile_args=["-g0"])
        for path in sorted(Path("aiolb").rglob("*.pyx"))
    ]
)
