#!/bin/sh
# ResNet-18 on Caltech-101: a linear head; fine-tuning of the classifier, of layer4 on cached
# activations and of all layers; training from scratch at 64 pixels:
#   sh experiments/finetune.sh
# FEATKIT_TEST_DATA is the folder of the data sets, FEATKIT_WEIGHTS the folder of the weights.
# All train images are used for training, nothing is selected, and the test set is used once.
# Interrupted trainings resume. Four epochs at the default learning rate are too few and too fast for
# full fine-tuning: experiments/finetune_full.sh selects the epoch at a lower rate.
set -eu

runs=experiments/finetune/resnet18
common="--data $FEATKIT_TEST_DATA/caltech101 --backbone resnet18 --val 0 --resume --out $runs"
featkit fit --data "$FEATKIT_TEST_DATA/caltech101" --backbone resnet18 --head linear --out "$runs"
# shellcheck disable=SC2086
{
  featkit finetune $common --mode shallow --epochs 40 --lr 0.1 --batch-size 64
  featkit finetune $common --mode deep --augment light --views 4 --epochs 8
  featkit finetune $common --mode full --augment light --views 0 --epochs 4
  featkit finetune $common --mode scratch --augment light --views 0 --epochs 15 --lr 0.05 \
    --resize 64 --crop 64
}
featkit compare "$runs"/caltech101/*/ | tee "$runs.txt"
