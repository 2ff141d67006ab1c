"""Pages for people who would rather look: one file each, which needs no network.

A page is a template `x.html.j2` with its looks and its scripts inlined. Its content security policy
names the scripts by their hashes: nothing else runs, whatever a parameter is called.
"""

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from importlib.util import find_spec
from typing import Any

from nnxconv.errors import BadInput


def check_packages(*names: str) -> None:
    """Makes sure that a page can be drawn.

    Raises:
      BadInput: one of the packages is not installed.
    """
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise BadInput(
            f"an HTML report needs {' and '.join(missing)}", hint="`pip install 'nnxconv[report]'`"
        )


def drawn(template: str, styles: Sequence[str], scripts: Sequence[str], **shown: Any) -> str:
    """The page of a template.

    Args:
      template: the name of its file.
      styles: the names of its style sheets, in their order.
      scripts: the texts of its scripts, in their order.
      shown: what the template shows.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("nnxconv", "render"), autoescape=True, undefined=StrictUndefined
    )
    inlined = list(map(_inlined, scripts))
    return environment.get_template(template).render(
        style="".join(map(own_file, styles)), scripts=inlined, policy=_policy(inlined), **shown
    )


def own_file(name: str) -> str:
    """The text of a file of this folder."""
    return files("nnxconv.render").joinpath(name).read_text(encoding="utf-8")


def _inlined(script: str) -> str:
    """The script as it can stand in a page, where `</script` would end it."""
    return script.replace("</script", r"<\/script")


def _policy(scripts: Sequence[str]) -> str:
    """A content security policy: these scripts, inline styles, no network."""
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()) for text in scripts]
    allowed = " ".join(f"'sha256-{digest.decode()}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline';"
        " img-src data:; base-uri 'none'; form-action 'none'"
    )
