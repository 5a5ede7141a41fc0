#!/bin/sh
# Spectra of the checkpoints that contrast.sh has trained, with their study file: three minutes.
set -eu
cd "$(dirname "$0")"
at="--problem digits --study curvature.db"
landscape density .build/sgd.pt .build/sam.pt $at --probes 4 --steps 50
landscape trace .build/sgd.pt .build/sam.pt $at --layers --tol 0.2
landscape plot --what density --study curvature.db --output density.png
landscape plot --what trace --study curvature.db --output layers.png
