#!/bin/sh
# CIFAR study: classifier only, last stage, and from scratch, with the curves of all three in one
# figure:
#   sh experiments/cifar_study.sh
# FEATKIT_TEST_DATA is the folder of the data sets, FEATKIT_WEIGHTS the folder of the weights.
# STUDY=experiments/cifar100.toml downloads all of CIFAR-100 and trains on it, for a GPU.
# Finished trainings are not repeated, so that an interrupted study can be started again.
set -eu

folder=experiments/cifar_study
study="${STUDY:-experiments/cifar10.toml}"
name=$(basename "$study" .toml)
runs=$folder/runs
mkdir -p "$runs"
if [ "$name" = cifar10 ]; then
  python experiments/require.py "${FEATKIT_TEST_DATA:-data}/cifar10" \
    --get "https://www.cs.toronto.edu/~kriz/cifar.html, as a folder cifar10 in FEATKIT_TEST_DATA" \
    --weights resnet18 --without "the last run of $study (scratch)"
fi

rm -rf "$runs/$name"/study-*
featkit finetune "$study" --resume --out "$runs" | tee "$folder/$name.txt"
cp "$runs/$name"/study-*/results.csv "$folder/$name.csv"
cp "$runs/$name"/study-*/curves.png "$folder/$name.png"
cut -d, -f2 "$folder/$name.csv" | tail -n +2 | sed "s|^|$runs/$name/|" |
  xargs featkit compare > "$folder/${name}_compared.txt"
cat "$folder/${name}_compared.txt"
