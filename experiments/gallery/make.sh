#!/bin/sh
# Every picture of this folder:
#   sh experiments/gallery/make.sh [CACHE]
# FEATKIT_TEST_DATA is the folder of the data sets, FEATKIT_WEIGHTS the folder of the weights. The
# screenshots of the reports need Chromium, and are left out without it.
set -eu

data=$FEATKIT_TEST_DATA
cache=${1:-cache}
gallery=$(dirname "$0")
runs=$(mktemp -d)
trap 'rm -rf "$runs"' EXIT

plot() { # NAME KIND ARGUMENT...
  name=$1
  shift
  featkit plot "$@" --out "$gallery/$name" --cache "$cache"
}

screenshot() { # NAME REPORT WIDTH HEIGHT
  if command -v chromium > /dev/null; then
    chromium --headless --no-sandbox --hide-scrollbars --virtual-time-budget=5000 \
      --window-size="$3,$4" --screenshot="$gallery/$1" "file://$2" 2> /dev/null
  fi
}

# Three runs: Caltech-101 and pets with frozen networks, EuroSAT with a fine-tuned one.
featkit fit --data "$data/caltech101" --backbone resnet50 --reject 0.05 --cache "$cache" --out "$runs"
featkit fit --data "$data/pets/labels.csv" --backbone resnet50 --cache "$cache" --out "$runs"
featkit finetune --data "$data/eurosat" --resize 64 --crop none --limit train=1000,test=300 \
  --epochs 12 --cache "$cache" --out "$runs"
caltech=$(echo "$runs"/caltech101/*/)
pets=$(echo "$runs"/pets/*/)
eurosat=$(echo "$runs"/eurosat/*/)

featkit report "$caltech" --out "$runs/caltech.html" --cache "$cache"
featkit report "$pets" --out "$runs/pets.html" --cache "$cache"
screenshot report.png "$runs/caltech.html" 1280 1700
screenshot report-narrow.png "$runs/pets.html" 400 1200

plot projection.png projection "$caltech" --dpi 100
plot projection-thumbnails.png projection "$pets" --thumbnails --dpi 100
plot confusion.png confusion "$eurosat" --dpi 80
plot reliability.png reliability "$caltech" --dpi 80
plot mistakes.png mistakes "$pets" --count 10 --dpi 70
plot curves.png curves "$eurosat" --dpi 80
plot learning-curve.png learning-curve "$pets" --dpi 80
plot pareto.png pareto experiments/compression/resnet18.csv --dpi 80
plot cam.png cam "$pets" "$data/pets/images/Siamese_109.jpg" "$data/pets/images/beagle_143.jpg" \
  "$data/pets/images/pug_140.jpg" "$data/pets/images/samoyed_144.jpg" --dpi 80
plot neighbours.png neighbours "$caltech" "$data/caltech101/test/crab/image_0011.jpg" \
  "$data/caltech101/test/chair/image_0005.jpg" "$data/caltech101/test/ketch/image_0092.jpg" --dpi 70
plot filters.png filters resnet50 --dpi 80
plot feature-maps.png feature-maps resnet50 "$data/caltech101/test/chair/image_0005.jpg" --dpi 70
plot perturbations.png perturbations "$data/caltech101/test/crab/image_0011.jpg" --dpi 50
plot paper-confusion.pdf confusion "$eurosat" --style paper
plot paper-learning-curve.pdf learning-curve "$pets" --style paper

rm "$gallery"/*.csv
du -ck "$gallery"/*.p* | tail -1
