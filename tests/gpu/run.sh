#!/usr/bin/env bash
# GPU measurements in at most 8 minutes: correctness, speed, kernels, memory.
#
#   bash tests/gpu/run.sh OUT [--tiny] [STEP=SECONDS ...]
#
# Writes results.json (all figures), steps.txt (how each step ended), log.txt, table.txt and two compiled programs to OUT;
# prints the table last.
# --tiny: small sizes, for a dry run on a CPU. STEP=SECONDS: only these steps. PYTHON: the interpreter (default: python3).
#
# Each step is a file in this folder and also runs alone: python tests/gpu/STEP.py OUT [--tiny]. Its deadline is the sum
# of all limits up to its own, so unused time goes to later steps. A failed step is noted, and the rest runs.
set -uo pipefail

limits=(machine=10 ceilings=25 agreement=85 decode_7b=110 int8_7b=60 against_recompute=45 against_transformers=55
  launches=35 most_streams=45) # 470 seconds, and 10 for the table
out=${1:?"usage: bash tests/gpu/run.sh OUT [--tiny] [STEP=SECONDS ...]"}
shift
tiny=()
[[ ${1-} == --tiny ]] && tiny=(--tiny) && shift
[[ $# -gt 0 ]] && limits=("$@")

SECONDS=0
mkdir -p "$out" && out=$(cd "$out" && pwd) && cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 2
rm -f "$out"/{results.json,steps.txt,log.txt,table.txt}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python=${PYTHON:-python3}
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$scratch/programs} # shared by all steps
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-1}
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-.93}
export PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1

installed() { # whether sllm_jax and sllm_jax.convert are those of this clone
  "$python" -c 'import sllm_jax.convert as c; raise SystemExit(not c.__file__.startswith(__import__("os").getcwd()))'
}

if ! (PYTHONSAFEPATH=1 installed) 2>/dev/null; then
  timeout -k 2 25 "$python" -m pip install --quiet --no-deps --no-build-isolation -e . >>"$out/log.txt" 2>&1
fi
if ! (PYTHONSAFEPATH=1 installed) 2>>"$out/log.txt"; then # use a folder of links instead
  mkdir "$scratch/sllm_jax" && ln -s "$PWD"/sllm_jax/* "$PWD/convert" "$scratch/sllm_jax/"
  export PYTHONPATH="$scratch${PYTHONPATH:+:$PYTHONPATH}"
fi

deadline=0 failed=0
for limit in "${limits[@]}"; do
  step=${limit%%=*} deadline=$((deadline + ${limit##*=})) begin=$SECONDS
  echo "== $step" >>"$out/log.txt"
  if ((deadline - SECONDS < 4)); then
    status="not started, no time was left"
  else
    timeout -k 1 $((deadline - SECONDS - 2)) "$python" "tests/gpu/$step.py" "$out" "${tiny[@]}" >>"$out/log.txt" 2>&1
    code=$?
    case $code in
      0) status=ok ;;
      124 | 137) status="stopped after its time" ;;
      *) status="failed, exit code $code" ;;
    esac
  fi
  [[ $status == ok ]] || failed=1
  printf '%s\t%s\t%s\n' "$step" $((SECONDS - begin)) "$status" | tee -a "$out/steps.txt"
done
timeout -k 1 8 "$python" tests/gpu/summary.py "$out" || failed=1
exit $failed
