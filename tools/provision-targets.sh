#!/usr/bin/env bash
# provision-targets.sh - make `cargo build --target x86_64-unknown-{none,uefi}` work with
# the toolchain that `rustc` selects in the current directory.  Idempotent.
#
#   1. target already usable                      -> nothing to do
#   2. `rustup target add` (ordinary machine)     -> done
#   3. fallback (machine where rustup may not or cannot download):
#      build core, compiler_builtins and alloc for the target from the library
#      sources of *exactly this* rustc release, with the settings rustc's own
#      build uses for prebuilt std (library/Cargo.toml, profile "dist"), put
#      them into the sysroot where rustup would put them, and record them in
#      rustup's files so that rust-toolchain.toml `targets = [...]`,
#      `rustup target list --installed` and `rustup target remove` agree.
#
# The project itself stays conventional: stable, no -Zbuild-std, no JSON target.
#
# Environment:
#   PROVISION_RUSTUP=0|1  never / always try `rustup target add` first
#                         (default: try, unless RUSTUP_AUTO_INSTALL=0 says that
#                         this machine is not to download toolchain parts)
#   RUST_LIBRARY_SRC=DIR  a `library/` source tree of this very release
#   PROVISION_CACHE=DIR   where the source package is kept
#   PROVISION_SUITES=...  Debian suites searched for rust-src (default below)
set -euo pipefail

TARGETS=("$@"); [ ${#TARGETS[@]} -gt 0 ] || TARGETS=(x86_64-unknown-none x86_64-unknown-uefi)
CACHE=${PROVISION_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/perigee/rust}
SUITES=${PROVISION_SUITES:-trixie-backports sid}

say() { printf 'provision: %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# May rustup download?  RUSTUP_AUTO_INSTALL=0 is a machine's standing "no".
try_rustup=${PROVISION_RUSTUP:-$([ "${RUSTUP_AUTO_INSTALL:-1}" = 0 ] && echo 0 || echo 1)}

# --- 0. the toolchain that is selected here.  Its binaries are called directly
# --- from then on, so that no rustup proxy or toolchain file gets in between.
sysroot() { RUSTUP_AUTO_INSTALL=$1 rustc --print sysroot; }
command -v rustc >/dev/null || die "no rustc on PATH"
if ! SYSROOT=$(sysroot 0 2>/dev/null) &&
   { [ "$try_rustup" = 0 ] || ! SYSROOT=$(sysroot 1); }; then
    # rust-toolchain.toml pins a release that is not installed under its own
    # name; the installed "stable" may be that very release.
    err=$(sysroot 0 2>&1 >/dev/null) || true
    pin=$(sed -n "s/.*toolchain '\([0-9.]*\)-.*is not installed.*/\1/p" <<<"$err" | head -1)
    [ -n "$pin" ] || die "$err"
    SYSROOT=$(RUSTUP_AUTO_INSTALL=0 rustc +stable --print sysroot)
    [ "$("$SYSROOT/bin/rustc" -vV | sed -n 's/^release: //p')" = "$pin" ] ||
        die "toolchain $pin is not installed, and stable is another release"
    name=$(basename "$SYSROOT"); ln -s "$SYSROOT" "$(dirname "$SYSROOT")/$pin-${name#stable-}"
    say "toolchain $pin: linked to $name"
fi
RUSTC=$SYSROOT/bin/rustc CARGO=$SYSROOT/bin/cargo
VV=$("$RUSTC" -vV)
RELEASE=$(sed -n 's/^release: //p' <<<"$VV")
COMMIT=$(sed -n 's/^commit-hash: //p' <<<"$VV")
RUSTLIB=$SYSROOT/lib/rustlib

WORK=$(mktemp -d); trap 'rm -rf "$WORK"' EXIT

# A target is usable when a no_std crate using core and alloc compiles for it.
usable() {
    echo '#![no_std] extern crate alloc; pub fn f() -> alloc::vec::Vec<u8> { alloc::vec![1] }' |
        "$RUSTC" --target "$1" --crate-type rlib --crate-name probe -o "$WORK/probe.rlib" - 2>/dev/null
}
missing() { local t; for t in "${TARGETS[@]}"; do usable "$t" || echo "$t"; done; }

mapfile -t MISSING < <(missing)
if [ ${#MISSING[@]} -eq 0 ]; then say "rustc $RELEASE: ${TARGETS[*]} already usable"; exit 0; fi

# --- 2. the ordinary way -----------------------------------------------------
if [ "$try_rustup" = 1 ] && command -v rustup >/dev/null &&
   timeout 300 rustup target add --toolchain "$(basename "$SYSROOT")" "${MISSING[@]}"; then
    mapfile -t MISSING < <(missing)
    if [ ${#MISSING[@]} -eq 0 ]; then say "rustup target add: ok"; exit 0; fi
fi
say "building for rustc $RELEASE: ${MISSING[*]}"

# --- 3a. library sources of exactly this release -----------------------------
# From a private apt state: the system's sources, lists and packages are left
# alone.  Mirror and keyring are taken from the system's own configuration.
fetch_debian() {
    local suite uri key opts ver dir=$CACHE/apt
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || return 1
    uri=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
          grep -v security | sort -u | head -1)
    [ -n "$uri" ] || uri=$(sed -n 's/^URIs: *\([^ ]*\).*/\1/p' /etc/apt/sources.list.d/*.sources | grep -v security | head -1)
    key=/usr/share/keyrings/debian-archive-keyring.gpg
    [ -n "$uri" ] && [ -r "$key" ] || return 1
    for suite in $SUITES; do
        rm -rf "$dir"; mkdir -p "$dir"/{etc,lists/partial,cache/archives/partial}
        printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n' \
            "$uri" "$suite" "$key" >"$dir/etc/rust.sources"
        opts=(-qq -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$dir/etc"
              -o Dir::State::Lists="$dir/lists" -o Dir::State::status=/dev/null
              -o Dir::Cache="$dir/cache" -o APT::Sandbox::User=)
        apt-get "${opts[@]}" update >&2 || continue
        ver=$(apt-cache "${opts[@]}" madison rust-src | awk -F'[ |]+' -v r="$RELEASE+" 'index($3, r) == 1 {print $3; exit}')
        [ -n "$ver" ] || { say "$suite has no rust-src $RELEASE"; continue; }
        say "$suite: rust-src $ver"
        (cd "$dir" && apt-get "${opts[@]}" download "rust-src=$ver" >&2) || continue
        rm -rf "$CACHE/src-$RELEASE.tmp"; mkdir -p "$CACHE/src-$RELEASE.tmp"
        # only the crates needed: ~60 MB of the package's 430 MB
        dpkg-deb --fsys-tarfile "$dir"/rust-src_*.deb | tar -x -C "$CACHE/src-$RELEASE.tmp" \
            --wildcards --strip-components=4 \
            './usr/src/rustc-*/library/core' './usr/src/rustc-*/library/alloc' \
            './usr/src/rustc-*/library/compiler-builtins' './usr/src/rustc-*/library/stdarch' \
            './usr/src/rustc-*/library/portable-simd' './usr/src/rustc-*/library/Cargo.toml' \
            './usr/src/rustc-*/library/Cargo.lock' './usr/src/rustc-*/src/version'
        rm -rf "$CACHE/src-$RELEASE" "$dir"
        mv "$CACHE/src-$RELEASE.tmp" "$CACHE/src-$RELEASE"
        return 0
    done
    return 1
}
if [ -n "${RUST_LIBRARY_SRC:-}" ]; then LIB=$RUST_LIBRARY_SRC
elif [ -d "$RUSTLIB/src/rust/library/alloc" ]; then LIB=$RUSTLIB/src/rust/library  # rust-src component
elif [ -d "$CACHE/src-$RELEASE/library/alloc" ]; then LIB=$CACHE/src-$RELEASE/library
else
    fetch_debian || die "no library sources for rustc $RELEASE (set RUST_LIBRARY_SRC)"
    LIB=$CACHE/src-$RELEASE/library
fi
LIB=$(cd "$LIB" && pwd)
[ ! -f "$LIB/../src/version" ] || [ "$(cat "$LIB/../src/version")" = "$RELEASE" ] ||
    die "$LIB is $(cat "$LIB/../src/version"), rustc is $RELEASE"

# --- 3b. build ---------------------------------------------------------------
# A wrapper package rather than library/ itself: library/'s workspace would have
# to resolve the dev-dependencies of std's tests, which nothing here needs; core,
# alloc and compiler_builtins have no dependency from a registry (--offline).
# Inside the wrapper's own folder (by a link) crate hashes do not depend on where
# the sources lie: cargo does not notice a sysroot that changes, so a rebuilt one
# must be the same one, or every target/ folder made with it goes stale (E0463).
mkdir -p "$WORK/w/src"; ln -s "$LIB" "$WORK/w/library"; echo '#![no_std]' >"$WORK/w/src/lib.rs"
cat >"$WORK/w/Cargo.toml" <<'TOML'
cargo-features = ["profile-rustflags"]
[package]
name = "bare-sysroot"
version = "0.0.0"
edition = "2024"
[workspace]
exclude = ["library"]
[dependencies]
alloc = { path = "library/alloc", features = ["compiler-builtins-mem"] }
[profile.dist]                       # = library/Cargo.toml [profile.dist]
inherits = "release"
codegen-units = 1
debug = 1
rustflags = ["-Cembed-bitcode=yes", "-Zunstable-options", "-Cforce-frame-pointers=non-leaf"]
[profile.dist.package.compiler_builtins]
codegen-units = 10000
TOML
args=(); for t in "${MISSING[@]}"; do args+=(--target "$t"); done
(   cd "$WORK/w"
    unset CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_TARGET CARGO_BUILD_RUSTFLAGS \
          RUSTC_WRAPPER RUSTC_WORKSPACE_WRAPPER CARGO_INCREMENTAL
    # RUSTC_BOOTSTRAP: the standard library may use unstable features on a stable
    # compiler; it applies to this build alone.  /rustc/COMMIT is the prefix that
    # official libraries carry, and keeps local paths out of binaries.
    RUSTC_BOOTSTRAP=1 RUSTC=$RUSTC CARGO_TARGET_DIR=$WORK/t \
    RUSTFLAGS="-Zforce-unstable-if-unmarked --remap-path-prefix=$WORK/w=/rustc/$COMMIT" \
    "$CARGO" build --quiet --offline -p alloc --profile dist "${args[@]}" )

# --- 3c. install as rustup's rust-std-TARGET component would -----------------
for t in "${MISSING[@]}"; do
    new=$RUSTLIB/.new-$t-$$; rm -rf "$new"; mkdir -p "$new/lib"
    cp "$WORK/t/$t"/dist/deps/lib{core,alloc,compiler_builtins}-*.rlib "$new/lib/"
    rm -rf "${RUSTLIB:?}/$t"; mv "$new" "$RUSTLIB/$t"
    usable "$t" || die "$t built, but rustc cannot use it"
    if [ -f "$RUSTLIB/multirust-config.toml" ]; then      # a rustup-managed toolchain
        (cd "$SYSROOT" && printf 'file:%s\n' lib/rustlib/"$t"/lib/*) >"$RUSTLIB/manifest-rust-std-$t"
        grep -qx "rust-std-$t" "$RUSTLIB/components" || echo "rust-std-$t" >>"$RUSTLIB/components"
        grep -qx "target = \"$t\"" "$RUSTLIB/multirust-config.toml" ||
            printf '\n[[components]]\npkg = "rust-std"\ntarget = "%s"\nis_extension = true\n' "$t" \
                >>"$RUSTLIB/multirust-config.toml"
    fi
    say "installed $t ($(du -sh "$RUSTLIB/$t" | cut -f1))"
done
