#!/bin/sh
# ResNet-18 on Caltech-101: linear head, classifier alone, layer4 on kept activations: sh experiments/finetune.sh
# FEATKIT_TEST_DATA names the folder that holds the data sets, FEATKIT_WEIGHTS that of the weights.
# All train images are trained on, nothing is chosen on the way, and test is looked at once.
set -eu

runs=experiments/finetune/resnet18
data="$FEATKIT_TEST_DATA/caltech101"
rm -rf "$runs"
featkit fit --data "$data" --backbone resnet18 --head linear --out "$runs"
featkit finetune --data "$data" --backbone resnet18 --mode shallow --epochs 40 --lr 0.1 --batch-size 64 --val 0 --out "$runs"
featkit finetune --data "$data" --backbone resnet18 --mode deep --augment light --views 4 --epochs 8 --val 0 --out "$runs"
featkit compare "$runs"/caltech101/*/ | tee "$runs.txt"
