#!/bin/sh
# Names what is missing before the first build, each with the line that installs it on Debian or Ubuntu.
# Exit status: 0 when all is there, 1 otherwise. PYTHON and CXX choose the interpreter and the compiler.

PYTHON=${PYTHON:-python3}
missing=0
packages=

say() { # what is missing, the packages that bring it
    missing=1
    packages="$packages $2"
    echo "missing: $1" >&2
    echo "    $apt install -y $2" >&2
}

have() { command -v "$1" >/dev/null 2>&1; }

if [ "$(id -u 2>/dev/null)" = 0 ]; then apt=apt-get; else apt="sudo apt-get"; fi

have make || say "make" make

# --- C++ compiler
cxx=${CXX:-}
if [ -z "$cxx" ]; then
    for candidate in c++ g++ clang++; do
        if have "$candidate"; then cxx=$candidate; break; fi
    done
fi
# CXX may hold flags or a launcher ("ccache g++"): its first word is the program.
if [ -z "$cxx" ] || ! have "${cxx%% *}"; then
    say "a C++ compiler${cxx:+ (CXX=$cxx is not a program)}" g++
else
    dir=$(mktemp -d) || exit 1
    trap 'rm -rf "$dir"' EXIT
    printf '%s\n' '#include <atomic>' '#include <span>' '#include <vector>' \
        'template <class T> requires(sizeof(T) > 1) int size(std::span<T> s) { return int(s.size()); }' \
        'int main() { std::vector<int> v; return size(std::span<int>(v)); }' >"$dir/probe.cc"
    if ! $cxx -std=c++20 -o "$dir/probe" "$dir/probe.cc" >"$dir/log" 2>&1; then
        say "a C++ compiler that builds C++20 programs ($cxx does not: GCC 11 or newer, or Clang 14 or newer)" \
            g++
        sed -n '1,3s/^/    | /p' "$dir/log" >&2
    fi
fi

# --- Python
if ! have "$PYTHON"; then
    say "Python 3.10 or newer ($PYTHON is not a program)" "python3 python3-dev python3-venv"
else
    version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
    if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        say "Python 3.10 or newer ($PYTHON is ${version:-not usable})" \
            "python3.11 python3.11-dev python3.11-venv"
        echo "    then choose it: make PYTHON=python3.11 ..." >&2
    else
        # The distribution's own packages are named after its default version or after the minor version.
        case $PYTHON in
            *python3.*) package=python$version ;;
            *) package=python3 ;;
        esac
        header=$("$PYTHON" -c 'import os, sysconfig; print(os.path.join(sysconfig.get_path("include"), "Python.h"))')
        [ -f "$header" ] || say "the headers of Python $version ($header)" "$package-dev"
        "$PYTHON" -c 'import venv, ensurepip' 2>/dev/null ||
            say "the venv module of Python $version" "$package-venv"
    fi
fi

if [ $missing != 0 ]; then
    echo "All of it:  $apt update && $apt install -y$packages" >&2
    exit 1
fi
