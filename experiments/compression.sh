#!/bin/sh
# Compressed networks on Caltech-101 (unstructured and structured pruning, int8):
#   sh experiments/compression.sh
# FEATKIT_TEST_DATA is the folder of the data sets, FEATKIT_WEIGHTS the folder of the weights.
# The sparsity curves use 20 train images per class and 1,000 test images, the tables all images.
set -eu

runs=experiments/compression
data="$FEATKIT_TEST_DATA/caltech101"
rm -rf "$runs"/*/
sparsities="--sparsity 0.5 --sparsity 0.7 --sparsity 0.8 --sparsity 0.9 --sparsity 0.95"
part="--limit train=2020,test=1000 --head linear"

# shellcheck disable=SC2086
featkit prune resnet18 $sparsities --data "$data" $part --out "$runs/one_shot"
# shellcheck disable=SC2086
featkit prune resnet18 $sparsities --data "$data" $part --epochs 2 --out "$runs/trained"
python experiments/pruning_figure.py "$runs/pruning" \
  "at once=$runs/one_shot" "two epochs after each step=$runs/trained"

int8="--method percentile --bias-correct --data $data --out $runs/int8"
half="--macs 0.5 --by activation --reconstruct 512 --data $data"
# shellcheck disable=SC2086
fitted=$(featkit prune resnet18 $half --out "$runs/fitted" | tail -n 1)
# shellcheck disable=SC2086
narrow=$(featkit prune resnet18 $half --epochs 6 --lr 0.01 --distill --out "$runs/narrow" |
  tail -n 1)
# The first student of experiments/distill.sh.
distilled=$(featkit distill --data "$data" --student resnet18 --mode deep --augment light \
  --epochs 20 --teacher resnet50 --limit train=1010 --val 0 --views 4 --resume \
  --out experiments/distill/deep --json |
  python -c 'import json, sys; print(json.load(sys.stdin)["runs"]["distilled"])')
# shellcheck disable=SC2086
resnet18_int8=$(featkit quantize resnet18 $int8 | tail -n 1)
# shellcheck disable=SC2086
narrow_int8=$(featkit quantize "$narrow" $int8 | tail -n 1)
# shellcheck disable=SC2086
distilled_int8=$(featkit quantize "$distilled" $int8 | tail -n 1)
featkit profile resnet18@torch resnet18 resnet18@bf16 resnet18@int8 resnet18@int8-openvino \
  "$resnet18_int8" "$resnet18_int8@int8-openvino" "$fitted@bf16" "$narrow@torch" \
  "$narrow@bf16" "$narrow_int8@int8-openvino" "$distilled@bf16" "$distilled_int8@int8-openvino" \
  --data "$data" --out "$runs/resnet18" | tee "$runs/resnet18.txt"
featkit profile resnet50@torch resnet50@bf16 resnet50@int8 resnet50@int8-openvino --data "$data" \
  --out "$runs/resnet50" | tee "$runs/resnet50.txt"
