"""What a terminal user needs: data, training, figures and the command `vae-fast`. Installed with the extra `app`."""

import errno
import signal
import sys

from vae_fast.extras import MissingExtra, import_extra


def main() -> None:
    """Run the command `vae-fast`. What only its user can mend is said in a line: a missing package, a full disk."""
    if sys.stdout is not None:
        sys.stdout.reconfigure(errors="replace")  # what a terminal cannot show, such as "…", ends no training
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a batch system's end is as Ctrl-C: reports are written
    try:
        import_extra("vae_fast.app.cli").app()
    except MissingExtra as error:
        raise SystemExit(f"vae-fast: {error}") from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        raise SystemExit(f"vae-fast: {error}") from None
