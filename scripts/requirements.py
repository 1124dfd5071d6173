"""Print the requirements of pyproject.toml, one a line, for `pip install -r`.

python scripts/requirements.py build            what [build-system] requires
python scripts/requirements.py test             an extra of [project.optional-dependencies]
"""

import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:  # Python 3.10 has no TOML reader of its own; every virtual environment has pip's.
    from pip._vendor import tomli as tomllib


def requirements(pyproject: Path, name: str) -> list[str]:
    """The requirement strings of `build` or of the named extra. KeyError: there is no such extra."""
    data = tomllib.loads(pyproject.read_text(encoding="utf-8"))
    if name == "build":
        return list(data["build-system"]["requires"])
    return list(data["project"]["optional-dependencies"][name])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print("\n".join(requirements(Path(__file__).resolve().parent.parent / "pyproject.toml", sys.argv[1])))
