#!/bin/bash
# examples/torchrun.sh HOST IMAGES SHARED/runs/mine, on each of two machines; HOST is the name of one of them.
set -eu
host=$1 images=$2 out=$3

torchrun --nnodes 2 --nproc-per-node gpu --rdzv-backend c10d --rdzv-endpoint "$host:29500" --max-restarts 3 \
    -m poa pretrain --data "$images" --out "$out" --recipe poa-vit-l --resume-if-begun
