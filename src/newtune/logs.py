"""The package's logger: results go through `cli/show.py`, everything else through here."""

import logging

logger = logging.getLogger("newtune")


def notice(text: str) -> None:
    """Tell the user about a translation or a choice made for them (level INFO)."""
    logger.info(text)
