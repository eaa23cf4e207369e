"""``python -m poa``."""

from poa.cli import main

if __name__ == "__main__":
    main()
