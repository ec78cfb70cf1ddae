#!/usr/bin/env bash
# Language neurons on real text: the PUD treebanks (13 languages) and verse-aligned Bibles, with the demo model and with
# stories260K. The data are not part of the package: PATCHCLAMP_DATA names a folder with ud_pud/, bible/ and
# models/stories260K/hf.
#
#     PATCHCLAMP_DATA=~/data scripts/real_text.sh results/
set -euo pipefail
data=${PATCHCLAMP_DATA:?set PATCHCLAMP_DATA to the folder with ud_pud, bible and models}
out=${1:?say where to write}
mkdir -p "$out"

split() { # split KIND LABEL: documents to find in and others to measure on, so that no effect is seen where units were found
  local source
  mkdir -p "$out/find" "$out/measure"
  case $1 in
    pud)
      source=$data/ud_pud/$2_pud.conllu
      awk -v RS= -v ORS='\n\n' 'NR <= 200' "$source" > "$out/find/pud-$2.conllu"
      awk -v RS= -v ORS='\n\n' 'NR > 200 && NR <= 240' "$source" > "$out/measure/pud-$2.conllu"
      ;;
    bible) # the demo model was trained on all but the last fiftieth of each Bible
      source=$data/bible/$2.txt
      tail -n 200 "$source" | head -n 160 > "$out/find/bible-$2.txt"
      tail -n 40 "$source" > "$out/measure/bible-$2.txt"
      ;;
  esac
}

texts() { # texts PART KIND LABEL... -> --text options
  local part=$1 kind=$2 label
  shift 2
  for label in "$@"; do
    printf -- '--text %s=%s ' "$label" "$(ls "$out/$part/$kind-$label".*)"
  done
}

study() { # study NAME MODEL RATE LABELS... (the text is what NAME begins with)
  local name=$1 model=$2 rate=$3 kind=${1%%-*} label
  shift 3
  echo "== $name"
  for label in "$@"; do split "$kind" "$label"; done
  # shellcheck disable=SC2046
  patchclamp record "$model" $(texts find "$kind" "$@") --out "$out/$name.recording"
  patchclamp find language "$out/$name.recording" --rate "$rate" --out "$out/$name.sets.json"
  # shellcheck disable=SC2046
  patchclamp effect "$model" "$out/$name.sets.json" $(texts measure "$kind" "$@") --controls 5 --permutations 19999 \
    --out "$out/$name.effects.json"
}

six="en de fr ru zh ja"
thirteen="ar de en es fr hi id ja ko pt ru tr zh"

study bible-demo demo 0.1 $six
study pud-demo demo 0.1 $six
study pud-stories "$data/models/stories260K/hf" 0.1 $thirteen
study pud-demo-thirteen demo 0.1 $thirteen
