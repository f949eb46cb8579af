#!/bin/sh
# A tour of nacrefs on this machine, as `make demo` runs it after the installation: a cluster, a mount, a source tree
# copied in and compared through a second mount, a file that goes to S3 and comes back by being read, what
# the commands show, and everything taken down again.
set -eu

for need in nacre fusermount3; do
    command -v "$need" >/dev/null || { echo "demo: $need is missing; run: make dev" >&2; exit 1; }
done
[ -e /dev/fuse ] || { echo "demo: there is no /dev/fuse: modprobe fuse, or docker run --device /dev/fuse --cap-add SYS_ADMIN" >&2; exit 1; }

source=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d /var/tmp/nacre-demo-XXXXXX)
cluster=$work/cluster first=$work/first second=$work/second
mkdir "$first" "$second"

finish() {
    code=$?
    trap - EXIT INT TERM
    if [ -e "$cluster/dev.toml" ]; then nacre dev down --dir "$cluster" --purge || code=1; fi
    if [ -d "$work" ]; then rm -rf --one-file-system "$work" || code=1; fi
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

if [ -t 1 ]; then bold=$(printf '\033[1m') plain=$(printf '\033[0m'); else bold='' plain=''; fi
say() { printf '\n%s# %s%s\n' "$bold" "$*" "$plain"; }
run() { printf '$ %s\n' "$*"; "$@"; }

say "One MDS, two OSSes with two OSTs each, and a mount"
run nacre dev up --dir "$cluster" --mount "$first"

say "New files in data/ are striped over all OSTs"
run mkdir "$first/data"
run nacre setstripe -c -1 -S 1M "$first/data"
run dd if=/dev/urandom of="$first/data/random" bs=1M count=32 conv=fsync status=none
run nacre getstripe "$first/data" "$first/data/random"

say "A source tree goes in, in an archive as people move them"
run mkdir "$first/tree"
(cd "$source" && tar --exclude=./.git --exclude=./build --exclude=./.venv --exclude='*cache*' -cf - .) | run tar -xf - -C "$first/tree"
echo "$(find "$first/tree" -type f | wc -l) files, $(du -sh --apparent-size "$first/tree" | cut -f1)"

say "A second mount sees every byte of it"
url=$(nacre dev status --dir "$cluster" --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["url"])')
run nacre mount "$url" "$second" --keyring "$cluster/keyring.toml"
run diff -r "$first/tree" "$second/tree"
run cmp "$first/data/random" "$second/data/random"
echo "the same, file for file and byte for byte"

say "What one side writes, the other reads at once"
run sh -c "echo from the second mount > '$second/note'"
run cat "$first/note"

say "Kill the MDS and start it again: what was stored is there"
kill -9 "$(cut -d' ' -f1 "$cluster/run/mds.pid")"
run nacre dev up --dir "$cluster"
run cat "$second/note"

say "A cold file goes to S3, and comes back when it is read"
run nacre dev up --dir "$cluster" --s3
s3=$(nacre dev status --dir "$cluster" --json | python3 -c 'import json, sys; s3 = json.load(sys.stdin)["s3"]; print("s3://%s/demo --endpoint %s --credentials-file %s" % (s3["bucket"], s3["endpoint"], s3["credentials"]))')
# shellcheck disable=SC2086
run nacre archive add "$first" cold $s3
sum=$(cksum < "$first/data/random")
run nacre hsm archive --wait "$first/data/random"
run nacre hsm release --wait "$first/data/random"
run nacre hsm state "$first/data/random"
run nacre df "$first"
run cp "$second/data/random" "$work/back"
[ "$sum" = "$(cksum < "$work/back")" ]
run nacre hsm state "$first/data/random"
echo "every byte is back"

say "How full it is"
run nacre df "$first"

say "What the first mount has been asked, and what it cost"
run nacre stats "$first"

say "The end: unmount, stop, remove"
run nacre umount "$second"
