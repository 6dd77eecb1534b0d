#!/bin/sh
# ResNet-50 with a linear head teaches ResNet-18, three seeds: sh experiments/distill.sh
# FEATKIT_TEST_DATA names the folder that holds the data sets, FEATKIT_WEIGHTS that of the weights.
# Caltech-101, judged on all test images; nothing is chosen on test. First layer4 on kept activations of ten train images
# of each class, on average, drawn by seed; then all of an untrained network that sees all train images at 64 pixels.
set -eu

runs=experiments/distill
data="$FEATKIT_TEST_DATA/caltech101"
common="--teacher resnet50 --augment light --val 0 --views 4 --seeds 3 --resume"

# shellcheck disable=SC2086
featkit distill --data "$data" --student resnet18 --mode deep --limit train=1010 --epochs 20 $common --out "$runs/deep" |
  tee "$runs/deep.txt"
# shellcheck disable=SC2086
featkit distill --data "$data" --student resnet18 --mode scratch --loss dkd --resize 64 --crop 64 --epochs 20 --lr 0.05 \
  $common --out "$runs/scratch" | tee "$runs/scratch.txt"
