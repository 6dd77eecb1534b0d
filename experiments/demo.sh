#!/bin/sh
# From images to a classifier, on scikit-learn's 1,797 scanned digits, offline and without GPU: make demo
set -eu

run() { printf '\n$ %s\n' "$*"; "$@"; }

out=experiments/demo
rm -rf "$out"
network="--weights random --resize 32"
# shellcheck disable=SC2086
{
  run featkit train digits $network --minutes 0.5 --name digits-demo --overwrite --out "$out"
  run featkit runs show digits-demo
  run featkit fewshot --data digits --backbone resnet18 $network --episodes 100 --shot 1 \
    --head linear --curve 1,2,5,10,20 --out "$out"
  run featkit ablate --data digits --backbone resnet18 $network --head linear --head knn \
    --head prototypical --out "$out"
  run featkit longtail --data digits --backbone resnet18 $network --if 10 --head linear \
    --balance none --balance logit_adjust --out "$out"
}
run featkit plot projection digits-demo --out "$out/digits.png"
printf '\npicture: %s\npage to open: %s\n' "$out/digits.png" "$(featkit runs show digits-demo --path)/report.html"
