#!/bin/sh
# Brings a volume up to date with the image: `volume.sh FROM TO`. A first start copies the whole project; later ones the
# code, so that a new image brings its own, and leave params.yaml, dvc.lock and the data as they are.
set -eu
if [ -e "$2/.filled" ]; then
    for code in tasks flows infra recipes dvc.yaml; do
        [ -e "$1/$code" ] || continue
        rm -rf "$2/.new"
        cp -R "$1/$code" "$2/.new"
        rm -rf "${2:?}/$code"
        mv "$2/.new" "$2/$code"
    done
else
    cp -Rf "$1/." "$2/"    # again from the start where it was cut short: git's own files are read-only
    touch "$2/.filled"
fi
