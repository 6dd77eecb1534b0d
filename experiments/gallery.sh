#!/bin/sh
# Draw the pictures of experiments/gallery: DATA=caltech101 sh experiments/gallery.sh
# DATA is the folder of Caltech-101 in train/ and test/; the network is an ImageNet ResNet-50.
set -eu
: "${DATA:?give the folder of Caltech-101}"
out=experiments/gallery
run=$(featkit fit --data "$DATA" --backbone resnet50 --head linear --out experiments/runs 2>&1 | sed -n 's/^run: //p')
featkit plot projection "$run" --out "$out/projection.png" --dpi 100
featkit plot mistakes "$run" --count 10 --out "$out/mistakes.png" --dpi 80
featkit plot cam "$run" "$DATA/test/crab/image_0011.jpg" "$DATA/test/chair/image_0005.jpg" \
  "$DATA/test/schooner/image_0046.jpg" "$DATA/test/sunflower/image_0001.jpg" --out "$out/cam.png" --dpi 100
featkit plot neighbours "$run" "$DATA/test/crab/image_0011.jpg" "$DATA/test/sunflower/image_0001.jpg" \
  --out "$out/neighbours.png" --dpi 80
featkit plot confusion "$run" --out "$out/confusion.png" --dpi 70
featkit plot reliability "$run" --out "$out/reliability.png" --dpi 90
featkit plot filters "$run" --out "$out/filters.png" --dpi 90
featkit plot feature-maps "$run" "$DATA/test/chair/image_0005.jpg" --out "$out/feature-maps.png" --dpi 70
featkit plot perturbations "$DATA/test/chair/image_0005.jpg" --out "$out/perturbations.png" --dpi 60
