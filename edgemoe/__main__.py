"""`python -m edgemoe` is the `edgemoe` command."""

from edgemoe.cli.main import main

if __name__ == "__main__":
    main()
