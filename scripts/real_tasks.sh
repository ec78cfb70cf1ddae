#!/usr/bin/env bash
# Studies on real data with the demo model: HateCheck, LRE relations, BLEnD with CountryRC, and the English PUD treebank. What the
# model doesn't know the verdicts must say. The data are not part of the package: PATCHCLAMP_DATA names a folder with hatecheck/,
# lre_relations/, blend/, country_rc/ and ud_pud/.
#
#     PATCHCLAMP_DATA=~/data scripts/real_tasks.sh results/ [MODEL]
set -euo pipefail
data=${PATCHCLAMP_DATA:?set PATCHCLAMP_DATA to the folder with hatecheck, lre_relations, blend, country_rc and ud_pud}
out=${1:?say where to write}
model=${2:-demo}
mkdir -p "$out"

study() { # study FOLDER NAME OPTIONS...
  echo "== $1"
  patchclamp study run "$2" --model "$model" --out "$out/$1" "${@:3}"
}

cases() { # cases GOLD STEP: every so manieth case, for the file is in the order of its templates
  awk -F'\t' -v gold="$1" -v step="$2" '$4 == gold && n++ % step == 0 {print $3}' "$data/hatecheck/hatecheck.tsv"
}
cases hateful 12 > "$out/hateful.txt"
cases non-hateful 5 > "$out/fine.txt"
study hatecheck eigenshift-detection --text hateful="$out/hateful.txt" --text fine="$out/fine.txt" --positive hateful

study relations relation-neurons --relations "$data/lre_relations/factual" --limit 25 --shares 0.02 --controls 2

awk -v RS= -v ORS='\n\n' 'NR <= 400' "$data/ud_pud/en_pud.conllu" > "$out/en.conllu"
study word-classes word-class-emergence --text en="$out/en.conllu" --controls 2

study blend cultural-neurons --blend-folder "$data/blend" --country-rc-file "$data/country_rc/country_rc.json" --form answers \
  --items 12 --controls 1
