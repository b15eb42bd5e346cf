"""`python -m dialdown`, for where its script is not on the path: the same commands."""

from .cli.main import main

if __name__ == "__main__":
    main()
