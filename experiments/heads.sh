#!/bin/sh
# Five tuned heads on features of two ResNets, Caltech-101, with paired tests:
#   sh experiments/heads.sh
# FEATKIT_TEST_DATA is the folder of the data sets, FEATKIT_WEIGHTS the folder of the weights.
set -eu

for backbone in resnet18 resnet50; do
  runs=experiments/heads/$backbone
  rm -rf "$runs"
  featkit fit --data "$FEATKIT_TEST_DATA/caltech101" --backbone $backbone --tune --out "$runs" \
    --head linear --head svm --head knn --head mlp --head prototypical
  featkit compare "$runs"/caltech101/*/ > "$runs.txt"
done
cat experiments/heads/*.txt
