"""`python -m vae_fast` is the command `vae-fast`."""

from vae_fast.app import main

if __name__ == "__main__":
    main()
