#!/bin/sh
# Backbones x heads study: five heads on two ResNets, corrupted images, class imbalance,
# augmentation, and fine-tuning compared with frozen features:
#   sh experiments/backbones_heads_study.sh
# FEATKIT_TEST_DATA is the folder of the data sets, FEATKIT_WEIGHTS the folder of the weights.
# DATA is another data set (DATA=eurosat:download=true, or a folder of aerial images), BACKBONES are
# other networks (BACKBONES="resnet18 resnet50 resnet101", whose weights are downloaded).
# Images are squashed to 128 x 128 pixels, for fine-tuning and augmentation to 64 x 64, the size of
# EuroSAT's images: minutes on one core. LARGE=224x224 SMALL=224x224 is the size of the original,
# whose protocol is always run at it.
# Hyperparameters of heads are tuned on validation images, those of trainings were set before the reported runs.
# Finished extractions, cells and trainings are not repeated, so that an interrupted study can be
# started again.
set -eu

study=experiments/backbones_heads_study
runs=$study/runs
mkdir -p "$runs"
data="${DATA:-${FEATKIT_TEST_DATA:-data}/eurosat}"
backbones="${BACKBONES:-resnet18 resnet50}"
options="" weights=""
for backbone in $backbones; do
  options="$options --backbone $backbone"
  weights="$weights --weights $backbone"
done
# shellcheck disable=SC2086
python experiments/require.py "$data" $weights \
  --get "DATA=eurosat:download=true, or DATA=FOLDER with a folder per class" \
  --without "BACKBONES=\"resnet18\" needs only the weights of ResNet-18"
first=${backbones%% *}
last=${backbones##* }
large="--resize ${LARGE:-128x128} --crop none"
small="--resize ${SMALL:-64x64} --crop none"

# Keep the tables of the newest grid in a folder of results, without the path of the images on this
# machine: keep FOLDER NAME
keep() {
  newest=$(ls -td "$1"/*/ | grep -v /cells/ | head -n 1)
  sed "s|$data|$(basename "$data")|g" "$newest/summary.md" > "$study/$2.md"
  sed "s|$data|$(basename "$data")|g" "$newest/results.csv" > "$study/$2.csv"
}

# shellcheck disable=SC2086
{
  # 1. Heads on frozen features.
  featkit ablate --data "$data" $options --weights imagenet $large --tune --head linear \
    --head svm --head mlp --head knn --head prototypical --out "$runs/heads"
  keep "$runs/heads/ablate" heads
  cp "$newest/heatmap.png" "$study/heads.png"

  # 2. Class imbalance: the largest class has 50 times as many images as the smallest one.
  featkit longtail --data "$data" --backbone "$last" --weights imagenet $large --if 50 \
    --head linear --head svm --balance none --balance oversample --balance reweight \
    --seed 0 --seed 1 --seed 2 --out "$runs/longtail"
  keep "$runs/longtail/longtail" longtail

  # 3. Three levels of corruption, for heads fitted on clean images, or on these and corrupted ones.
  featkit ablate --data "$data" --backbone "$first" --weights imagenet $large --tune --head svm \
    --perturb none --perturb mixed:level=mild --perturb mixed:level=medium \
    --perturb mixed:level=strong --train-perturb none --train-perturb mixed:level=mild \
    --train-perturb mixed:level=medium --train-perturb mixed:level=strong --out "$runs/corrupted"
  keep "$runs/corrupted/ablate" corrupted

  # 4. The protocol of the original: fixed hyperparameters, unscaled features.
  featkit fit --data "$data" --backbone "$first" --resize 224x224 --crop none \
    --head svm:C=9,scale=none --head mlp:width=512 --head knn:k=3,metric=euclidean,weights=uniform \
    --head prototypical:metric=euclidean --head linear --out "$runs/original" \
    > "$study/original.txt"

  # 5. Frozen and fine-tuned at 64 pixels. With --norm update the running statistics of BatchNorm
  # drift while only the classifier is trained, as in the original. experiments/finetune_full.sh
  # trains all layers.
  featkit fit --data "$data" --backbone "$first" $small --tune --head svm --head linear \
    --out "$runs/finetuned"
  common="--data $data --backbone $first $small --resume --out $runs/finetuned"
  featkit finetune $common --mode shallow --epochs 20
  featkit finetune $common --mode shallow --norm update --augment light --views 0 --epochs 3 \
    --name "classifier, BatchNorm drifts"
  featkit compare "$runs"/finetuned/*/*/ > "$study/finetuned.txt"

  # 6. Augmentation: two augmented views of each train image are added.
  for views in "" "--augment light --views 2"; do
    featkit fit --data "$data" --backbone "$first" $small $views --tune --head linear --head svm \
      --out "$runs/augmented"
  done
  featkit compare "$runs"/augmented/*/*/ > "$study/augmented.txt"
}
