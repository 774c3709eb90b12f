#!/usr/bin/env bash
# Everything that only a GPU can show, in at most 8 minutes: correctness, speed, kernels, memory.
#
#   bash tests/gpu/run.sh OUT [--tiny] [STEP=SECONDS ...]
#
# OUT gets results.json (all figures), steps.txt (how each step ended), log.txt and table.txt; the table is printed last.
# --tiny: small sizes, for a dry run on a CPU. STEP=SECONDS: these steps only. PYTHON: the interpreter, else python3.
#
# A step is a file of this folder and runs alone too: python tests/gpu/STEP.py OUT [--tiny]. Each has to end by the sum
# of the seconds up to its own, so time that one leaves over is the next one's. A step that fails is noted; the rest runs.
set -uo pipefail

limits=(machine=40 ceilings=20 agreement=80 decode_7b=85 int8_7b=45 against_recompute=45 against_transformers=80
  launches=40 most_streams=35) # 470 seconds, and 10 for the table
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
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$scratch/programs} # what one step compiled, others use
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-1}
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-.93}
export PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1

installed() { # whether sllm_jax is this clone, sllm_jax.convert being its folder convert/
  "$python" -c 'import sllm_jax.convert as c; raise SystemExit(not c.__file__.startswith(__import__("os").getcwd()))'
}

if ! (PYTHONSAFEPATH=1 installed) 2>/dev/null; then
  timeout -k 2 25 "$python" -m pip install --quiet --no-deps --no-build-isolation -e . >>"$out/log.txt" 2>&1
fi
if ! (PYTHONSAFEPATH=1 installed) 2>>"$out/log.txt"; then # a folder of links in its place
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
