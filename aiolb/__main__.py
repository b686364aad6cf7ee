"""``python -m aiolb``."""

from aiolb.cli.main import main

if __name__ == "__main__":
    main()
