"""Run the command line as `python -m replaybench`."""

from replaybench.cli import main

if __name__ == "__main__":
    main()
