"""python -m gpt2_lit -> gpt2-lit."""

from gpt2_lit.cli.main import main

if __name__ == "__main__":
    main()
