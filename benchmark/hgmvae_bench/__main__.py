"""``python -m hgmvae_bench`` runs the command without its script on the path."""

from hgmvae_bench.cli import main

if __name__ == "__main__":
    main()
