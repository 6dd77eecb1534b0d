#!/bin/sh
# torch and TensorFlow on the same network, weights and images; needs the extra tensorflow:
#   sh experiments/frameworks.sh
# FEATKIT_TEST_DATA is the folder of the data sets, FEATKIT_WEIGHTS the folder of the weights.
# Finished trainings are not repeated, so that an interrupted run can be started again.
set -eu

runs=experiments/frameworks/runs
caltech="$FEATKIT_TEST_DATA/caltech101"
cifar="$FEATKIT_TEST_DATA/cifar10"

# Small images and subsets: minutes of CPU time instead of hours.
featkit compare-frameworks --data "$caltech" --backbone resnet18 --resize 64 --augment none \
  --limit train=1010,test=505 --deep-limit train=505,test=303 --epochs 3 --seeds 3 \
  --images 32 --repeats 6 --out "$runs/caltech101"

# One epoch on CIFAR-10, on half as many images as a study that reports 76.3 % (ResNet50V2 in
# TensorFlow), 72.9 % (ResNet-50 in PyTorch) and 24.0 % (ResNet-18 from scratch).
one_epoch="--data $cifar --epochs 1 --warmup 0 --val 0.1 --augment none --resume"
for framework in "" keras:; do
  # shellcheck disable=SC2086
  featkit finetune $one_epoch --backbone "${framework}resnet50" --mode shallow --resize 64 \
    --out "$runs/cifar10"
  # shellcheck disable=SC2086
  featkit finetune $one_epoch --backbone "${framework}resnet18" --mode scratch --resize 32 \
    --out "$runs/cifar10"
done
