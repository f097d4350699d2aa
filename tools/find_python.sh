#!/bin/sh
# Print the first Python that works, of the versions named (by default the newest), or end with 1.
# A name on PATH is no proof: a pyenv shim may answer with "not installed", and Debian's python3
# comes without venv.
[ $# -gt 0 ] || set -- 3.14 3.13 3.12 3.11 3.10
for version in "$@"; do
    for python in "python$version" "$HOME/.pyenv/versions/$version".*/bin/python; do
        if "$python" -c 'import venv, ensurepip' 2>/dev/null; then
            "$python" -c 'import sys; print(sys.executable)'
            exit
        fi
    done
done
echo "No Python of $* that can make a virtual environment: install one (on Debian:" \
    "apt-get install python3-venv), or name it: make PYTHON=/path/to/python3" >&2
exit 1
