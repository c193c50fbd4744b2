# shellcheck shell=bash
# Sourced by the launchers in the repository's folder: leaves `python` pointing at an environment with the pinned
# requirements. That is the active one if it has them all, else .venv, which is made (and fixed) here.
# EXTRA_REQUIREMENTS names a further requirements file.

requirement_files=(requirements.txt ${EXTRA_REQUIREMENTS:+"$EXTRA_REQUIREMENTS"})

# Whether the given python has every pinned version. "2.13.0+cpu" is 2.13.0.
has_requirements() {
    command -v "$1" >/dev/null && "$1" - "${requirement_files[@]}" <<'PYTHON'
import importlib.metadata, sys
for file in sys.argv[1:]:
    for line in open(file):
        name, pinned, version = line.split("#")[0].strip().partition("==")
        try:
            if pinned and importlib.metadata.version(name).split("+")[0] != version:
                sys.exit(1)
        except importlib.metadata.PackageNotFoundError:
            sys.exit(1)
PYTHON
}

if ! has_requirements python; then
    if ! has_requirements .venv/bin/python; then
        base=$(command -v python3 || command -v python) || { echo "setup.sh: there is no python3 here" >&2; exit 2; }
        if ! "$base" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "setup.sh: $base is $("$base" --version); it takes Python 3.10 or newer with the venv module" >&2
            exit 2
        fi
        echo "setup.sh: installing ${requirement_files[*]} into .venv (minutes, once)"
        [[ -x .venv/bin/python ]] || "$base" -m venv .venv
        .venv/bin/python -m pip install --quiet --disable-pip-version-check "${requirement_files[@]/#/--requirement=}" ||
            { echo "setup.sh: the installation failed; the lines above say why" >&2; exit 2; }
    fi
    # shellcheck disable=SC1091
    source .venv/bin/activate
fi
