#!/bin/sh
# The main job on scikit-learn's 1,797 scanned digits: no network, no GPU. Run by `make demo`.
set -eu

say() { printf '\n$ %s\n' "$*"; "$@"; }

say featkit extract --data digits --backbone resnet18 --weights random
for head in linear svm knn mlp prototypical; do
  say featkit fit --data digits --backbone resnet18 --weights random --head "$head"
done
say featkit ablate --data digits --backbone resnet18
printf '\nrun directories: experiments/digits/, table and heat map: experiments/ablate/\n'
