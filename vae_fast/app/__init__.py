"""What a terminal user needs: data, training, figures and the command `vae-fast`. Installed with the extra `app`."""

from vae_fast.models.storage import MissingExtra, import_extra


def main() -> None:
    """Run the command `vae-fast`."""
    try:
        import_extra("vae_fast.app.cli").app()
    except MissingExtra as error:
        raise SystemExit(f"vae-fast: {error}") from None
