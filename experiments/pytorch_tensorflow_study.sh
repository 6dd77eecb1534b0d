#!/bin/sh
# PyTorch and TensorFlow study: networks with and without skip connections and BatchNorm, then the
# same network in both frameworks (needs the extra tensorflow, otherwise left out):
#   sh experiments/pytorch_tensorflow_study.sh
# FEATKIT_TEST_DATA is the folder of the data sets, FEATKIT_WEIGHTS the folder of the weights.
# Finished trainings are not repeated, so that an interrupted study can be started again.
set -eu

study=experiments/pytorch_tensorflow_study
runs=$study/runs
mkdir -p "$runs"
python experiments/require.py "${FEATKIT_TEST_DATA:-data}/cifar10" \
  --get "https://www.cs.toronto.edu/~kriz/cifar.html, as a folder cifar10 in FEATKIT_TEST_DATA"

rm -rf "$runs"/skips/study-*
featkit finetune experiments/skips.toml --resume --out "$runs" | tee "$study/skips.txt"
cp "$runs"/skips/study-*/results.csv "$study/skips.csv"
cp "$runs"/skips/study-*/curves.png "$study/skips.png"
cut -d, -f2 "$study/skips.csv" | tail -n +2 | sed "s|^|$runs/cifar10/|" |
  xargs featkit compare > "$study/skips_compared.txt"

if python -c 'import tensorflow' 2> /dev/null; then
  sh experiments/frameworks.sh
else
  echo "TensorFlow is not installed (pip install '.[tensorflow]'): experiments/frameworks.sh is left out"
fi
