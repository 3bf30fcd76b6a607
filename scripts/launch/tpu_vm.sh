#!/usr/bin/env bash
# Trains on the TPU VMs of a slice, one process a VM. Run on your own machine, in the project. See docs/pods.md.
#
#   export TPU=vise ZONE=europe-west4-b
#   export ACCELERATOR=v5litepod-32 VERSION=v2-alpha-tpuv5-lite NFS=10.0.0.2:/share      for `create`
#   scripts/launch/tpu_vm.sh create           a spot slice with this commit of the project, and NFS as /share
#   scripts/launch/tpu_vm.sh train CONFIG SHARDS RUN [--config.SECTION.KEY=VALUE ...]
#   scripts/launch/tpu_vm.sh log              of the first VM, as it comes
#   scripts/launch/tpu_vm.sh stop             saves; the same `train` goes on
#   scripts/launch/tpu_vm.sh delete
#
# SHARDS and RUN are under /share. A preempted slice is gone: delete, create, and the same `train` again.

set -euo pipefail

usage() {
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

# on WHICH COMMAND...: run a command on one VM of the slice, or on all.
on() {
  gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker="$1" --command="$(printf '%q ' "${@:2}")"
}

(($#)) || usage
what=$1
shift
: "${TPU:?is the name of the slice}" "${ZONE:?is the zone of the slice}"

case $what in
  create)
    : "${ACCELERATOR:?is its type, e.g. v5litepod-32}" "${VERSION:?is the image, e.g. v2-alpha-tpuv5-lite}"
    : "${NFS:?is HOST:/PATH of the shared folder}"
    gcloud compute tpus tpu-vm create "$TPU" --zone="$ZONE" --accelerator-type="$ACCELERATOR" --version="$VERSION" --spot
    archive=$(mktemp --suffix=.tar.gz)
    trap 'rm -f "$archive"' EXIT
    git archive --output="$archive" HEAD
    gcloud compute tpus tpu-vm scp "$archive" "$TPU:vise_jax.tar.gz" --zone="$ZONE" --worker=all
    # A Python of its own: that of the image may be too old.
    on all bash -euc "
      sudo apt-get install --yes nfs-common
      sudo mkdir -p /share
      sudo mount -t nfs $(printf %q "$NFS") /share
      mkdir -p vise_jax
      tar -xzf vise_jax.tar.gz -C vise_jax
      cd vise_jax
      curl -LsSf https://astral.sh/uv/install.sh | sh
      ~/.local/bin/uv venv --python 3.12 .venv
      ~/.local/bin/uv pip install --require-hashes --requirement constraints.txt
      ~/.local/bin/uv pip install --no-deps --no-build-isolation --editable .
      ~/.local/bin/uv pip install 'jax[tpu]'
    "
    ;;
  train)
    (($# >= 3)) || usage
    config=$1 shards=$2 run=$3
    shift 3
    # systemd sends SIGTERM when the VM is shut down, and starts the process again after an error.
    # shellcheck disable=SC2016
    on all bash -euc '
      cd ~/vise_jax
      exec sudo systemd-run --unit=vise --collect --uid="$(id -u)" --gid="$(id -g)" --working-directory="$PWD" \
        --setenv=HOME="$HOME" --setenv=JAX_COMPILATION_CACHE_DIR=/share/.jax \
        --property=TimeoutStopSec=300 --property=Restart=on-failure --property=RestartSec=30 \
        --property=StartLimitIntervalSec=1d --property=StartLimitBurst=10 \
        "$PWD/.venv/bin/python" -u scripts/train.py "$@"
    ' train --config "$config" --config.data.shards="$shards" --workdir "$run" "$@"
    ;;
  log) on 0 sudo journalctl --unit=vise --lines=100 --follow ;;
  stop) on all sudo systemctl stop vise ;;
  delete) gcloud compute tpus tpu-vm delete "$TPU" --zone="$ZONE" ;;
  *) usage ;;
esac
