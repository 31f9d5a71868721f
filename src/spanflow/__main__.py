"""`python -m spanflow`: the command line, where its script is not on the path."""

from spanflow.cli import main

if __name__ == "__main__":
    main()
