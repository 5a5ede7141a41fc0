#!/bin/sh
# Spectra of the checkpoints that contrast.sh has trained, with their study file: one minute.
set -eu
cd "$(dirname "$0")"
at="--problem digits --study curvature.db"
landscape density SGD=.build/sgd.pt SAM=.build/sam.pt $at --probes 4 --steps 50
landscape trace SGD=.build/sgd.pt SAM=.build/sam.pt $at --layers --tol 0.2
landscape plot --what density --study curvature.db --output density.png
landscape plot --what trace --study curvature.db --output layers.png
