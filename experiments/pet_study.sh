#!/bin/sh
# Pet study: a fine-tuned ResNet-18, a larger teacher, distillation, int8 and unstructured pruning,
# with a t-SNE projection, filters and a confusion matrix:
#   sh experiments/pet_study.sh
# FEATKIT_TEST_DATA is the folder of the data sets, FEATKIT_WEIGHTS the folder of the weights.
# DATA is another data set, LIMIT its number of train images, TEACHER another network. The original:
#   DATA=oxford-iiit-pet:download=true LIMIT=3680 TEACHER=resnet34 SIZE=224 \
#     sh experiments/pet_study.sh
# Images of 64 pixels (SIZE) and ten train images per class on average: minutes instead of hours on
# one core. Hyperparameters are those of experiments/distill.sh, with half the epochs and views;
# nothing is selected. experiments/distill.sh trains the same students at 224 pixels, and from
# scratch at 64, with three seeds.
# Finished trainings are not repeated, so that an interrupted study can be started again.
set -eu

study=experiments/pet_study
runs=$study/runs
data="${DATA:-${FEATKIT_TEST_DATA:-data}/caltech101}"
teacher="${TEACHER:-resnet50}"
python experiments/require.py "$data" --weights resnet18 --weights "$teacher" \
  --get "https://data.caltech.edu/records/mzrjq-6wc02, or DATA=oxford-iiit-pet:download=true" \
  --without "the trainings from scratch: featkit finetune --mode scratch --data DATA"

images="--data $data --limit train=${LIMIT:-1010} --resize ${SIZE:-64} --crop ${SIZE:-64}"
# Print a value of a JSON file: field PATH FILE
field() {
  python -c "import json, sys; print(json.load(open(sys.argv[1]))$1)" "$2"
}

mkdir -p "$runs"
# shellcheck disable=SC2086
{
  featkit fit $images --backbone "$teacher" --head linear --name teacher --out "$runs/teacher" \
    --json > "$runs/teacher.json"
  fitted=$(field '["path"]' "$runs/teacher.json")
  featkit distill $images --student resnet18 --teacher "$fitted" --mode deep --augment light \
    --views 2 --epochs 10 --val 0 --resume --out "$runs/students" --json > "$runs/students.json"
  tuned=$(field '["runs"]["alone"]' "$runs/students.json")
  distilled=$(field '["runs"]["distilled"]' "$runs/students.json")
  featkit compare "$fitted" "$tuned" "$distilled" > "$study/accuracy.txt"

  for student in "$tuned" "$distilled"; do
    featkit quantize "$student" --method percentile --bias-correct --out "$runs/int8"
  done > "$study/int8.txt" 2>&1
  rm -rf "$runs/pruned"
  featkit prune "$tuned" $images --head linear --sparsity 0.5 --sparsity 0.7 --sparsity 0.8 \
    --sparsity 0.9 --out "$runs/pruned"
  python experiments/pruning_figure.py "$study/pruning" "fine-tuned ResNet-18=$runs/pruned"

  featkit plot projection "$tuned" --out "$study/projection.png"
  featkit plot confusion "$tuned" --out "$study/confusion.png"
  featkit plot filters "$tuned" --out "$study/filters.png"
}
