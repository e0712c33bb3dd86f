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
# outside, and for a while before and after, so that whoever is asked then still sees it. It is the same process all the
# time: another one would get other pages.
if [ "$1" = --program ]; then
    case "$2" in
    sort) filter="$b sort -n" ;;
    gzip) filter="$b gzip -c" ;;
    bzip2) filter="$b bzip2 -c" ;;
    sha256sum) filter="$b sha256sum" ;;
    esac
    work() { $filter </tmp/in >/tmp/done; }
    go_on() { while :; do again; done | $filter >/dev/null; }
    again() { $b cat /tmp/in; }
    $b awk -v seed="$4" 'BEGIN { srand(seed); for (i = 0; i < 30000; i++) print int(rand() * 1e9) }' >/tmp/once
    $b cat /tmp/once /tmp/once /tmp/once /tmp/once >/tmp/in
    work
    first=$($b sha256sum </tmp/done)
    go_on &
    $b sleep 3
    /bin/workload --window open
    $b sleep "$3"
    /bin/workload --window close
    echo "PROBE window closed program=$2"
    $b sleep 5
    $b kill -9 -1
    work
    if [ "$($b sha256sum </tmp/done)" = "$first" ]; then
        echo "GUEST-RESULT ok $2"
    else
        echo "GUEST-RESULT mismatch $2 gave different results"
    fi
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
