# shellcheck shell=bash
# Sourced by .ci/run: a Docker engine for the tests. One that answers already is used and left alone; else a daemon
# of this run's own is started in a new folder and ended, by its pid, with everything it made. Works as root on a
# bare Debian without systemd, in a chroot too. What it could not do it says.

docker_folder="" docker_pid="" docker_made_bridge="" docker_mounts=()

# Whether an engine answers at $1 (as in DOCKER_HOST), or where the client looks by itself.
docker_answers() {
    command -v docker >/dev/null || return 1
    if [ -n "${1:-}" ]; then
        DOCKER_HOST="$1" timeout 10 docker version >/dev/null 2>&1
    else
        timeout 10 docker version >/dev/null 2>&1
    fi
}

# Debian's packages start their services when they are installed; here nothing shall run that nobody ends.
without_services() {
    local rule=/usr/sbin/policy-rc.d status=0
    if [ -e "$rule" ]; then
        "$@"
        return
    fi
    printf '#!/bin/sh\nexit 101\n' >"$rule" && chmod 755 "$rule"
    "$@" || status=$?
    rm -f "$rule"
    return "$status"
}

# In a chroot / is no mount point, and neither Docker nor a container runs below such a root. Then the script $1 is
# begun again below one that is: the same files, seen through a mount of this process's own.
below_a_mounted_root() {
    [ "$(id -u)" = 0 ] && [ -z "${CI_BELOW_A_MOUNTED_ROOT:-}" ] || return 0
    awk '$5 == "/" { found = 1 } END { exit !found }' /proc/self/mountinfo && return 0
    export CI_BELOW_A_MOUNTED_ROOT=yes
    # shellcheck disable=SC2016
    exec unshare --mount --propagation unchanged \
        sh -c 'mount --rbind / /mnt && exec chroot /mnt bash "$1"' sh "$1"
}

docker_mount() { # arguments of mount, the target last
    mkdir -p "${!#}" && mount "$@" 2>/dev/null && docker_mounts=("${!#}" "${docker_mounts[@]}")
}

# What a chroot lacks: /sys and the control groups, in the version that the kernel uses.
docker_prepare_kernel() {
    mountpoint -q /proc || docker_mount -t proc proc /proc
    mountpoint -q /sys || docker_mount -t sysfs sysfs /sys
    if ! mountpoint -q /sys/fs/cgroup; then
        local controller
        if [ "$(awk '$1 == "memory" { print $2 }' /proc/cgroups 2>/dev/null)" != 0 ]; then
            echo "mounting control groups, version 1"
            docker_mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup
            for controller in $(awk '!/^#/ && $2 != 0 { print $1 }' /proc/cgroups); do
                docker_mount -t cgroup -o "$controller" cgroup "/sys/fs/cgroup/$controller"
            done
        else
            echo "mounting control groups, version 2"
            docker_mount -t cgroup2 cgroup2 /sys/fs/cgroup
        fi
    fi
    if [ ! -e /sys/fs/cgroup/cgroup.controllers ] && ! mountpoint -q /sys/fs/cgroup/systemd; then
        docker_mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd # containerd asks for it
    fi
}

docker_launch() { # further options of dockerd; waits until it answers
    local waited=0
    (
        exec dockerd --data-root "$docker_folder/data" --exec-root "$docker_folder/exec" \
            --pidfile "$docker_folder/pid" -H "unix://$docker_folder/docker.sock" "$@" \
            >"$docker_folder/log" 2>&1 </dev/null
    ) &
    docker_pid=$!
    while ! docker_answers "unix://$docker_folder/docker.sock"; do
        waited=$((waited + 1))
        if [ "$waited" -gt 120 ] || ! kill -0 "$docker_pid" 2>/dev/null; then
            docker_end
            return 1
        fi
        sleep 0.25
    done
}

# Whether a container really runs: a daemon that answers may still lack control groups or a file system.
docker_runs_containers() {
    local busybox image="llamaman-ci/smoke:$$" works=""
    busybox="$(command -v busybox)" || return 1
    tar -C "$(dirname "$busybox")" -cf - busybox | docker import - "$image" >/dev/null || return 1
    docker_reason="$(docker run --rm --network none --memory 64m "$image" /busybox echo works 2>&1)"
    [ "$docker_reason" = works ] && works=yes
    docker rmi -f "$image" >/dev/null
    [ -n "$works" ]
}

docker_end() { # our own daemon alone
    [ -n "$docker_pid" ] || return 0
    kill "$docker_pid" 2>/dev/null
    for _ in $(seq 150); do
        kill -0 "$docker_pid" 2>/dev/null || break
        sleep 0.1
    done
    kill -KILL "$docker_pid" 2>/dev/null
    wait "$docker_pid" 2>/dev/null
    docker_pid=""
}

# Start what is needed; afterwards DOCKER_HOST leads to an engine that runs containers. 1 with the reason printed.
docker_start() {
    docker_reason=""
    if docker_answers; then
        echo "an engine answers already${DOCKER_HOST:+ at $DOCKER_HOST}"
    else
        unset DOCKER_HOST
        docker_prepare_kernel
        docker_folder="$(mktemp -d "${TMPDIR:-/var/tmp}/llamaman-ci.XXXXXX")"
        [ -e /sys/class/net/docker0 ] || docker_made_bridge=yes
        if ! docker_launch; then
            echo "dockerd did not come up by itself; once more with --storage-driver=vfs. It said:"
            tail -n 5 "$docker_folder/log"
            rm -rf "$docker_folder/data"
            docker_launch --storage-driver=vfs || {
                tail -n 15 "$docker_folder/log"
                echo "FAILED: dockerd does not run here; the lines above say why" >&2
                return 1
            }
        fi
        export DOCKER_HOST="unix://$docker_folder/docker.sock"
    fi
    docker info --format 'Docker {{.ServerVersion}}, storage driver {{.Driver}}, cgroup version {{.CgroupVersion}}'
    docker_runs_containers || {
        [ -z "$docker_folder" ] || tail -n 5 "$docker_folder/log"
        echo "FAILED: the Docker engine cannot run a container: ${docker_reason:-the image cannot be made}" >&2
        return 1
    }
}

# End our daemon and remove what it left; an engine that was there before is not touched.
docker_stop() {
    docker_end
    if [ -n "$docker_folder" ]; then
        awk -v folder="$docker_folder/" 'index($5, folder) == 1 { print $5 }' /proc/self/mountinfo | sort -r |
            while read -r left; do umount -l "$left" 2>/dev/null; done
        rm -rf "$docker_folder"
        [ -z "$docker_made_bridge" ] || ! command -v ip >/dev/null || ip link del docker0 2>/dev/null
        docker_folder=""
    fi
    for left in "${docker_mounts[@]}"; do umount -l "$left" 2>/dev/null; done
    docker_mounts=()
}
