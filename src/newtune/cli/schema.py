"""`newtune schema`: the JSON Schema of a configuration for editors, or a page for people."""

import json

from newtune.cli.show import show_text
from newtune.config.reference import json_schema, markdown


def run(*, as_markdown: bool) -> int:
    """Print the schema."""
    show_text(markdown().rstrip() if as_markdown else json.dumps(json_schema(), indent=2))
    return 0
