#!/bin/sh
# Distill ResNet-50 with a linear head into ResNet-18, three seeds:
#   sh experiments/distill.sh
# FEATKIT_TEST_DATA is the folder of the data sets, FEATKIT_WEIGHTS the folder of the weights.
# Ten train images of each class of Caltech-101, on average, drawn by seed, and all test images.
# First layer4 is fine-tuned on cached activations, then a network is trained from scratch on images
# of 64 pixels, for which long training matters most. README.md in experiments/distill describes how
# the hyperparameters were selected.
set -eu

runs=experiments/distill
data="$FEATKIT_TEST_DATA/caltech101"
common="--teacher resnet50 --limit train=1010 --augment light --val 0 --seeds 3 --resume"

# shellcheck disable=SC2086
featkit distill --data "$data" --student resnet18 --mode deep --views 4 --epochs 20 $common \
  --out "$runs/deep" | tee "$runs/deep.txt"
# shellcheck disable=SC2086
featkit distill --data "$data" --student resnet18 --mode scratch --resize 64 --crop 64 --views 8 \
  --epochs 60 --lr 0.05 --loss dkd $common --out "$runs/scratch" | tee "$runs/scratch.txt"
