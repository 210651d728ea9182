"""The distribution's own name: its version, and the check that its top-level packages are really ours.

TerSparse installs the packages reference, kernels, autotune, suites and reports. Other distributions use some of these names too
(`kernels`, for one), and Python would then import whichever comes first, or a mixture of both.
"""

from __future__ import annotations

import sys
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

__version__ = "0.1.0"

PACKAGES = ("reference", "kernels", "autotune", "suites", "reports")


def clashes() -> list[str]:
    """One line for each of our package names that resolves to somebody else's files or that another distribution installs too."""
    home = Path(__file__).resolve().parent
    shared = home.name in ("site-packages", "dist-packages")
    owners = packages_distributions() if shared else {}
    found = []
    for name in PACKAGES:
        spec = find_spec(name)
        places = list(spec.submodule_search_locations or ()) if spec else []
        others = sorted(set(owners.get(name, ())) - {"tersparse"})
        if not places:
            found.append(f"package {name!r} of tersparse is missing beside {home}")
        elif Path(places[0]).resolve().parent != home:
            found.append(f"package {name!r} resolves to {places[0]}, not to tersparse's in {home}")
        elif others:
            found.append(f"package {name!r} is also installed by {', '.join(others)}; both write to {home / name}")
    return found


def refuse_clashes() -> None:
    """Stop when a package name is not ours: exit code 2 and one line from a command (`python -m …`), ImportError elsewhere."""
    found = clashes()
    if not found:
        return
    message = "tersparse: " + "; ".join(found) + "; use a virtual environment without the other package"
    if sys.argv[0] == "-m":
        print(message, file=sys.stderr)
        raise SystemExit(2)
    raise ImportError(message)
