#!/bin/busybox sh
# Process 1 of a Perigee guest. The words after "--" on the kernel's command line arrive as its
# arguments and go to the workload. Three lines are read by the harness:
#   GUEST-UP cpus=N ...          userspace is there
#   GUEST-NODE N ...             a NUMA node as the guest sees it
#   GUEST-RESULT ok|mismatch ... what the workload found
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
read -r uptime rest </proc/uptime
read -r clock </sys/devices/system/clocksource/clocksource0/current_clocksource
echo "GUEST-UP cpus=$($b grep -c ^processor /proc/cpuinfo) kernel=$($b uname -r) clock=$clock uptime=$uptime"
for node in /sys/devices/system/node/node*; do
    cpus=$($b cat $node/cpulist)
    distance=$($b cat $node/distance)
    memory=$($b awk '/MemTotal/ { print $4 }' $node/meminfo)
    echo "GUEST-NODE ${node##*/node} cpus=$cpus memory_kib=$memory distance=$distance"
done

# A program that knows nothing of all this, Debian's busybox, for so many seconds between two marks for an observer
# outside, and for a while after, so that whoever is asked meanwhile still sees it.
if [ "$1" = --program ]; then
    case "$2" in
    sort) work() { $b sort -n /tmp/in >/tmp/done; } ;;
    gzip) work() { $b gzip -c /tmp/in >/tmp/done; } ;;
    esac
    $b awk -v seed="$4" 'BEGIN { srand(seed); for (i = 0; i < 120000; i++) print int(rand() * 1e9) }' >/tmp/in
    work
    first=$($b sha256sum </tmp/done)
    differ=
    run_until() {
        while [ "$($b date +%s)" -lt "$1" ]; do
            work
            [ "$($b sha256sum </tmp/done)" = "$first" ] || differ=1
        done
    }
    /bin/workload --window open
    run_until $(($($b date +%s) + $3))
    /bin/workload --window close
    echo "PROBE window closed program=$2"
    run_until $(($($b date +%s) + 5))
    [ "$differ" ] && echo "GUEST-RESULT mismatch $2 gave different results" || echo "GUEST-RESULT ok $2"
    $b poweroff -f
fi

{ /bin/workload "$@" 2>&1; echo $? >/tmp/status; } | $b tee /tmp/out
read -r status </tmp/status
last=$($b tail -n 1 /tmp/out)
# A workload that did nothing has shown nothing.
case "$status $last" in
"0 WORKLOAD-RESULT "*) ok=1 ;;
*) ok= ;;
esac
if [ "$ok" ]; then
    echo "GUEST-RESULT ok $last"
else
    echo "GUEST-RESULT mismatch status=$status $last"
fi

if $b grep -q perigee.stay /proc/cmdline; then
    $b --install -s /bin
    export PATH=/bin HOME=/
    echo "GUEST-SHELL this is a shell; poweroff -f ends this guest"
    $b setsid $b cttyhack $b sh
fi
$b poweroff -f
