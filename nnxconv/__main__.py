"""`python -m nnxconv` is the command `nnxconv`."""

from nnxconv.cli import main

if __name__ == "__main__":
    main()
