#!/bin/sh
# The main commands on scikit-learn's 1,797 scanned digits, without network or GPU. Run by `make demo`.
set -eu

run() { printf '\n$ %s\n' "$*"; "$@"; }

rm -rf experiments/demo
run featkit extract --data digits --backbone resnet18 --weights random
for head in linear svm knn mlp prototypical; do
  run featkit fit --data digits --backbone resnet18 --weights random --head "$head" --out experiments/demo
done
run featkit fit --data digits --backbone resnet18 --weights random --head knn --tune --out experiments/demo
run featkit compare experiments/demo/digits/*/
run featkit ablate --data digits --backbone resnet18 --out experiments/demo
run featkit longtail --data digits --weights random --if 10 --balance none --balance logit_adjust --out experiments/demo
run featkit robustness --data digits --weights random --family fog --family jpeg --level medium --out experiments/demo
run featkit finetune --data digits --mode scratch --backbone resnet18:stem=small --resize 16 --epochs 7 --lr 0.05 \
  --out experiments/demo
printf '\nrun directories: experiments/demo/digits/, reports to open: experiments/demo/*/*/report.html\n'
