"""`python -m trainer`, which `accelerate launch -m trainer` starts on every GPU."""

from trainer.cli import main

if __name__ == "__main__":
    main()
