"""`python -m zoo`, which `accelerate launch -m zoo train NAME` and `torchrun -m zoo` need."""

from zoo.cli import main

if __name__ == "__main__":
    main()
