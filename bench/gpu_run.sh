#!/usr/bin/env bash
# Builds, checks and times everything on a GPU machine in one go.
#
#   bash bench/gpu_run.sh                         all steps
#   STEPS="build tests" bash bench/gpu_run.sh     some of them, in this order of the list below
#
# Steps: build tests sanitize kernels parity fp8 invariance moe workload perplexity.
# From the environment (each has a default or is left out):
#   OUT         folder of the results: info.json, a log for each step, *.json, taco.jsonl   [build/gpu-run]
#   BUILD       build folder                                                                [build/gpu]
#   PYTHON      interpreter with numpy and nanobind; torch and transformers for parity      [python3]
#   ARCHS       compute capabilities to build for                                           [90a]
#   CMAKE_ARGS  more arguments, such as -DGTest_DIR=...
#   WORKLOAD    the peers' workload.py (step workload); MODEL_SHAPE, QUANT, PARTS, BATCHES choose what it runs
#   PEER        a command that measures a peer; run before and after ours, its rows belong into $OUT
#   ARCHS_DIR   references made before by device_parity.py (a folder or archs.tar.xz in it), where transformers is
#               missing; results go to OUT/archs.json, for scripts/architectures.py
#   MODEL, TEXT a checkpoint and a text file (step perplexity)
# Each step has a time limit, and a step that fails does not stop the next. Exit status: failed steps.
set -u
cd "$(dirname "$0")/.."
OUT=${OUT:-$PWD/build/gpu-run} BUILD=${BUILD:-$PWD/build/gpu} PYTHON=${PYTHON:-python3} ARCHS=${ARCHS:-90a}
STEPS=${STEPS:-build tests sanitize kernels parity fp8 invariance moe workload perplexity}
QUANT=${QUANT-,fp8} MODEL_SHAPE=${MODEL_SHAPE:-llama3-8b}
JOBS=${JOBS:-$(nproc)}
mkdir -p "$OUT"
SITE=$BUILD/site  # the package as it would be installed
export PYTHONPATH=$SITE${PYTHONPATH:+:$PYTHONPATH}
export TACO_COMMIT=${TACO_COMMIT:-$(git rev-parse --short HEAD 2>/dev/null)}
FAILED=()

# step NAME SECONDS COMMAND...: runs it with its output in NAME.log.
step() {
  local name=$1 limit=$2 begin=$SECONDS status=0
  shift 2
  timeout -k 5 "$limit" "$@" > "$OUT/$name.log" 2>&1 || status=$?
  [ $status = 0 ] || FAILED+=("$name")
  printf '%-24s %5d s   %s\n' "$name" $((SECONDS - begin)) "$([ $status = 0 ] && echo ok || echo "FAILED ($status)")"
  [ $status = 0 ] || tail -n 15 "$OUT/$name.log"
}

info() {
  "$PYTHON" - "$OUT/info.json" <<'PY'
import datetime, json, os, platform, subprocess, sys

def said(*words):
    try:
        return subprocess.run(words, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""

gpu = said("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader").splitlines()
info = {
    "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    "commit": os.environ.get("TACO_COMMIT", ""),
    "changed": bool(said("git", "status", "--porcelain", "--untracked-files=no")),
    "gpu": [line.split(", ") for line in gpu],
    "nvcc": said("nvcc", "--version").rpartition("release ")[2].split(",")[0],
    "python": platform.python_version(),
    "cpu_cores": os.cpu_count(),
}
json.dump(info, open(sys.argv[1], "w"), indent=1)
print(json.dumps(info))
PY
}

build() {
  cmake -S . -B "$BUILD" -G Ninja -DTACO_CUDA=ON -DTACO_CUDA_ARCHS="$ARCHS" -DTACO_TESTS=ON -DTACO_BENCH=ON \
    -DPython_EXECUTABLE="$(command -v "$PYTHON")" ${CMAKE_ARGS:-} &&
    cmake --build "$BUILD" --parallel "$JOBS" &&
    rm -rf "$SITE" && mkdir -p "$SITE" && cp -r python/taco_llm "$SITE/" &&
    rm -f "$SITE"/taco_llm/*.so &&
    cp "$BUILD"/cpp/_core*.so "$BUILD"/cpp/backend/cuda/libtaco_cuda.so "$SITE/taco_llm/"
}

sanitize() {
  # Small cases of every op: the tools are tens of times slower.
  local tests=$BUILD/tests/cpp/taco_tests_cuda
  local memory=${SANITIZE_FILTER:--*Long*:*ManyRows*:*Large*:*EveryShape*:*EveryGrouping*:CudaUpload.*}
  local races=${RACECHECK_FILTER:-CudaNorm.*:CudaSampling.*:CudaAttention.SplitsOfEveryKind:CudaMoe.RoutingRules:CudaRope.*}
  compute-sanitizer --tool memcheck --error-exitcode 9 "$tests" --gtest_filter="$memory" --gtest_brief=1 &&
    compute-sanitizer --tool racecheck --error-exitcode 9 "$tests" --gtest_filter="$races" --gtest_brief=1
}

parity() {
  local made=${ARCHS_DIR:-$BUILD/archs}
  [ -d "$made" ] || { mkdir -p "$made" && "$PYTHON" tests/python/archs/device_parity.py make "$made"; } || return 1
  TACO_TEST_DEVICE=cuda "$PYTHON" tests/python/archs/device_parity.py run "$made" "$OUT/archs.json"
}

invariance() {
  "$PYTHON" bench/offline/random_config.py "$MODEL_SHAPE" "$BUILD/shape" || return 1
  local model=("$BUILD/shape" --load-format dummy) status=0
  [ -n "${MODEL:-}" ] && model=("$MODEL")
  "$PYTHON" bench/eval/batch_invariance.py "${model[@]}" || status=1
  "$PYTHON" bench/eval/batch_invariance.py "${model[@]}" --batch-invariant || status=1
  return $status
}

workload() {
  "$PYTHON" bench/offline/peer_workload.py --workload "$WORKLOAD" --model "$MODEL_SHAPE" --quant="$QUANT" \
    --out "$OUT/taco.jsonl" ${PARTS:+--parts "$PARTS"} ${BATCHES:+--batches "$BATCHES"}
}

export -f build sanitize parity invariance workload
export OUT BUILD PYTHON ARCHS SITE QUANT MODEL_SHAPE JOBS
info | tee "$OUT/info.log"
for one in $STEPS; do
  case $one in
    build) step build 1800 bash -c build ;;
    tests)
      for tests in taco_tests_cuda taco_tests_cuda_core; do
        step $tests 300 "$BUILD/tests/cpp/$tests" --gtest_brief=1 --gtest_output="json:$OUT/$tests.json"
      done
      step doctor 60 "$PYTHON" -m taco_llm doctor
      ;;
    sanitize) step sanitize 420 bash -c sanitize ;;
    kernels)
      for bench in "$BUILD"/bench/cuda_*_bench; do
        step "$(basename "$bench")" 120 "$bench"
      done
      ;;
    parity) step parity 180 bash -c parity ;;
    fp8) step fp8 120 "$PYTHON" tests/python/loading/device_fp8.py cuda "$OUT/fp8.json" ;;
    moe) step moe 180 "$PYTHON" bench/offline/moe_step.py --out "$OUT/moe.json" ;;
    invariance) step invariance 180 bash -c invariance ;;
    workload)
      if [ -z "${WORKLOAD:-}" ]; then echo "workload: left out, WORKLOAD names no workload.py"; continue; fi
      [ -z "${PEER:-}" ] || step peer-before 900 bash -c "$PEER"
      step workload 900 bash -c workload
      [ -z "${PEER:-}" ] || step peer-after 900 bash -c "$PEER"
      ;;
    perplexity)
      if [ -z "${MODEL:-}" ] || [ -z "${TEXT:-}" ]; then echo "perplexity: left out, MODEL or TEXT is missing"; continue; fi
      step perplexity 300 "$PYTHON" bench/eval/perplexity.py "$MODEL" --text "$TEXT" --device cuda \
        --dtypes float32,bfloat16,fp8
      ;;
    *) echo "there is no step $one" >&2; FAILED+=("$one") ;;
  esac
done

echo
grep -h "pass, worst" "$OUT/parity.log" 2>/dev/null
grep -h "different_tokens" "$OUT/invariance.log" 2>/dev/null
grep -h "pass on" "$OUT/fp8.log" 2>/dev/null
grep -h -e "^|" -e "^copy" "$OUT/moe.log" 2>/dev/null
cat "$OUT/perplexity.log" 2>/dev/null
if [ -n "${WORKLOAD:-}" ] && ls "$OUT"/*.jsonl > /dev/null 2>&1; then "$PYTHON" "$WORKLOAD" "$OUT"/*.jsonl; fi
[ ${#FAILED[@]} = 0 ] && echo "all steps ok; results in $OUT" || echo "failed: ${FAILED[*]}"
exit ${#FAILED[@]}
