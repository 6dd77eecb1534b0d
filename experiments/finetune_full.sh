#!/bin/sh
# Full fine-tuning of ResNet-18 at a low learning rate, with early stopping:
#   sh experiments/finetune_full.sh
# FEATKIT_TEST_DATA is the folder of the data sets, FEATKIT_WEIGHTS the folder of the weights.
# About 25 minutes for each epoch of Caltech-101 at 224 pixels on one core, 45 seconds for EuroSAT:
#   DATA="$FEATKIT_TEST_DATA/eurosat" SIZE="--resize 64x64 --crop none" sh experiments/finetune_full.sh
# The epoch is selected on the validation images of the data, or on a tenth of its train images; the
# test set is used once. An interrupted training resumes.
set -eu

data="${DATA:-${FEATKIT_TEST_DATA:-data}/caltech101}"
python experiments/require.py "$data" --weights resnet18 \
  --get "https://data.caltech.edu/records/mzrjq-6wc02, or DATA=FOLDER with a folder per class" \
  --without "nothing: full fine-tuning starts from them"
# shellcheck disable=SC2086
featkit finetune --data "$data" --backbone resnet18 ${SIZE:-} --mode full --augment light \
  --views 0 --val 0.1 --epochs 20 --lr 0.002 --patience 4 --resume --out experiments/finetune/full
