"""What the commands share: values of options, checked."""

from collections.abc import Callable
from typing import Any

import typer


def argument(option: str, function: Callable, *values: Any) -> Any:
    """Call `function`; what it finds wrong is said of `option`."""
    try:
        return function(*values)
    except (OSError, TypeError, ValueError) as error:
        message = error.strerror if isinstance(error, OSError) else str(error)
        raise typer.BadParameter(message, param_hint=f"'{option}'") from error
