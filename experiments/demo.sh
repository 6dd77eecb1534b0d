#!/bin/sh
# The main commands on scikit-learn's 1,797 scanned digits, offline and without GPU: make demo
set -eu

run() { printf '\n$ %s\n' "$*"; "$@"; }

out=experiments/demo
digits="--data digits --backbone resnet18 --weights random"
rm -rf "$out"
# shellcheck disable=SC2086
{
  run featkit extract $digits
  for head in linear svm knn mlp prototypical; do
    run featkit fit $digits --head "$head" --out "$out"
  done
  run featkit fit $digits --head knn --tune --out "$out"
}
run featkit compare "$out"/digits/*/
run featkit ablate --data digits --backbone resnet18 --out "$out"
run featkit longtail --data digits --weights random --if 10 \
  --balance none --balance logit_adjust --out "$out"
run featkit robustness --data digits --weights random --family fog --family jpeg --level medium \
  --out "$out"
run featkit finetune --data digits --mode scratch --backbone resnet18:stem=small --resize 16 \
  --epochs 7 --lr 0.05 --out "$out"
printf '\nrun directories: %s/digits/, reports: %s/*/*/report.html\n' "$out" "$out"
