"""``python -m hgmvae_bench``: the command, where its script is not on the path."""

from hgmvae_bench.cli import main

if __name__ == "__main__":
    main()
