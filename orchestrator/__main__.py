"""`python -m orchestrator`: the `sweep` command, where its script is not on the path."""

from orchestrator.cli import main

if __name__ == "__main__":
    main()
