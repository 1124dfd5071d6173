#!/bin/sh
# Makes GoogleTest available to the C++ tests: the system's when there is one, otherwise the distribution's
# package, unpacked into the folder given (no root rights needed and nothing outside the folder changed).
# Usage: get_googletest.sh FOLDER; afterwards FOLDER/usr is a CMAKE_PREFIX_PATH.

folder=${1:?usage: get_googletest.sh FOLDER}
cxx=${CXX:-}
for candidate in c++ g++ clang++; do
    [ -n "$cxx" ] || { command -v "$candidate" >/dev/null 2>&1 && cxx=$candidate; }
done
mkdir -p "$folder" && folder=$(cd "$folder" && pwd) || exit 1

links() { # with these flags?
    # shellcheck disable=SC2086
    printf '#include <gtest/gtest.h>\nTEST(Probe, Runs) {}\n' |
        $cxx -std=c++20 -x c++ - $1 -o "$folder/probe" -lgtest -lgtest_main -pthread >/dev/null 2>&1
    status=$?
    rm -f "$folder/probe"
    return $status
}

found() {
    links "" && return 0
    for lib in "$folder"/usr/lib/*/libgtest.a "$folder"/usr/lib/libgtest.a; do
        [ -f "$lib" ] && links "-I$folder/usr/include -L$(dirname "$lib")" && return 0
    done
    return 1
}

found && exit 0
echo "== GoogleTest: unpacking libgtest-dev into $folder"
if command -v apt-get >/dev/null 2>&1 && command -v dpkg >/dev/null 2>&1; then
    (
        cd "$folder" || exit 1
        if ! apt-get download libgtest-dev >/dev/null 2>apt.log; then
            # No package lists yet: fetch them into a folder of our own.
            mkdir -p apt/lists/partial apt/cache/archives/partial
            set -- -o "Dir::State::lists=$folder/apt/lists" -o "Dir::Cache=$folder/apt/cache" \
                -o APT::Sandbox::User=root
            apt-get "$@" update >apt.log 2>&1 && apt-get "$@" download libgtest-dev >>apt.log 2>&1 || exit 1
        fi
        for package in libgtest-dev_*.deb; do dpkg -x "$package" . || exit 1; done
    ) || cat "$folder/apt.log" >&2
    found && exit 0
    if [ "$(id -u)" = 0 ]; then
        echo "== GoogleTest: installing libgtest-dev"
        apt-get install -y --no-install-recommends libgtest-dev && found && exit 0
    fi
fi
echo "missing: GoogleTest, which the C++ tests need" >&2
echo "    sudo apt-get install -y libgtest-dev" >&2
exit 1
