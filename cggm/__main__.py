"""The command ``cggm`` as a module: ``python -m cggm``, and ``torchrun -m cggm`` for ranks."""

from cggm.commands import main

if __name__ == "__main__":
    raise SystemExit(main())
