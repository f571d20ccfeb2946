"""Train the embedding stub: python train_stub.py fit. All of it is in gpt2_lit/, and starts in gpt2_lit/cli/main.py."""

from gpt2_lit.cli.main import train

if __name__ == "__main__":
    train()
