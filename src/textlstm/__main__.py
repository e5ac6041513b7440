"""`python -m textlstm` is `textlstm`."""

from textlstm.cli import main

if __name__ == "__main__":
    main()
