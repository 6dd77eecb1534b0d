#!/bin/sh
# Full fine-tuning of ResNet-18 on Caltech-101 at a low learning rate, with early stopping:
#   sh experiments/finetune_full.sh
# FEATKIT_TEST_DATA is the folder of the data sets, FEATKIT_WEIGHTS the folder of the weights.
# A tenth of the train images is held out to select the epoch; the test set is used once. About 25
# minutes for each epoch on one core. An interrupted training resumes.
set -eu

runs=experiments/finetune/full
featkit finetune --data "$FEATKIT_TEST_DATA/caltech101" --backbone resnet18 --mode full \
  --augment light --views 0 --val 0.1 --epochs 20 --lr 0.002 --patience 4 --resume --out "$runs"
