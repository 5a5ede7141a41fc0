#!/bin/sh
# The picture in README.md, with its study file: about a minute on two cores.
set -eu
cd "$(dirname "$0")"
landscape demo --output .build
cp .build/contrast.png .build/contrast.pdf .build/contrast.svg .
cp .build/demo.db contrast.db
